"use strict";
// The page of several runs: one plot of their fronts.

function frontsFigure(node) {
  const paints = ["accent", "second", "c5", "c1", "c7", "third"], dashes = ["solid", "dash", "dot"];
  const data = payload.fronts.map((front, index) => ({
    type: "scatter", mode: "lines+markers", name: plain(front.run), x: front.macs, y: front.score,
    text: front.networks.map((name, i) => `<b>${shown(front.score[i])}</b> · ${short(front.macs[i])} multiply-adds<br>${plain(name)}<br>${short(front.params[i])} parameters`),
    hovertemplate: `${plain(front.run)}: %{text}<extra></extra>`,
    line: {color: colour(paints[index % 6]), width: 1.8, shape: "hv", dash: dashes[Math.floor(index / 6) % 3]},
    marker: {size: 7, color: colour(paints[index % 6])},
  }));
  const costs = payload.fronts.flatMap(front => front.macs);
  return {data, layout: layout({
    showlegend: true, margin: {l: 52, r: 12, t: 36 + (narrow(node) ? 14 * data.length : 0), b: 48},
    xaxis: axis("multiply-adds per image", costScale(costs, node)),
    yaxis: metricAxis(""),
  })};
}

if (payload.fronts.length) chart("fronts", frontsFigure);
