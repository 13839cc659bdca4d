"use strict";
// The page of several searches: their fronts on one plot, and their hypervolumes on another.

function searchLine(index) {
  const paints = ["accent", "second", "c5", "c1", "c7", "third"], dashes = ["solid", "dash", "dot"];
  return {
    line: {color: colour(paints[index % 6]), width: 1.8, dash: dashes[Math.floor(index / 6) % 3]},
    marker: {size: 7, color: colour(paints[index % 6])},
  };
}

function shared(node, more) {
  return layout({showlegend: true, margin: {l: 52, r: 12, t: 36 + (narrow(node) ? 14 * payload.fronts.length : 0), b: 48}, ...more});
}

function frontsFigure(node) {
  const data = payload.fronts.map((front, index) => ({
    type: "scatter", mode: "lines+markers", name: plain(front.search), x: front.costs, y: front.values,
    text: front.networks.map((name, i) => `<b>${shown(front.values[i])}</b> · ${short(front.costs[i])} ${plain(payload.cost)}<br>${plain(name)}`),
    hovertemplate: `${plain(front.search)}: %{text}<extra></extra>`, ...searchLine(index),
  }));
  const costs = payload.fronts.flatMap(front => front.costs);
  return {data, layout: shared(node, {
    xaxis: axis(payload.cost, costScale(costs, node)),
    yaxis: metricAxis(""),
  })};
}

function volumesFigure(node) {
  const data = payload.volumes.map((volume, index) => ({
    type: "scatter", mode: "lines+markers", name: plain(volume.search), x: volume.measured, y: volume.hypervolume,
    hovertemplate: `${plain(volume.search)}: %{y:.4f} after %{x} measurements<extra></extra>`, ...searchLine(index),
  }));
  return {data, layout: shared(node, {xaxis: axis("measurements", {rangemode: "tozero"}), yaxis: axis("hypervolume", {nticks: 6})})};
}

chart("fronts", frontsFigure);
chart("volumes", volumesFigure);
