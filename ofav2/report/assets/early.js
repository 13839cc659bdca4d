"use strict";
// The page of early exits: every threshold against cost, the measured ones against time.

const {curve, rows, chosen, exits, batches} = payload;
const early = rows.filter(row => row.threshold !== null), single = rows.filter(row => row.threshold === null);

function where(shares) {
  return shares.map((share, i) => `exit ${exits[i]}: ${percent(share)}`).join("<br>");
}

function marks(x) {
  const own = rows[chosen];
  return [{
    type: "scatter", mode: "markers", name: "one exit alone", x: single.map(x), y: single.map(row => row.top1),
    text: single.map(row => `<b>${plain(row.name)}</b><br>${percent(row.top1)} · ${short(row.mean_macs)} multiply-adds`),
    hovertemplate: "%{text}<extra></extra>", marker: {symbol: "square", size: 9, color: colour("third")},
  }, {
    type: "scatter", mode: "markers", name: "chosen", x: [x(own)], y: [own.top1],
    text: [`<b>chosen: ${plain(own.name)}</b><br>${percent(own.top1)} · ${short(own.mean_macs)} multiply-adds<br>${where(own.shares)}`],
    hovertemplate: "%{text}<extra></extra>",
    marker: {symbol: "circle-open", size: 15, color: colour("second"), line: {width: 3}},
  }];
}

function shape(node, title, more) {
  return layout({showlegend: true, margin: {l: 52, r: 16, t: narrow(node) ? 72 : 40, b: 48}, xaxis: axis(title, {rangemode: "tozero"}), ...more});
}

const accuracy = () => axis("validation top-1", {tickformat: ".1~%"});

function costFigure(node) {
  const line = {
    type: "scatter", mode: "lines+markers", name: "thresholds", x: curve.macs, y: curve.top1,
    text: curve.thresholds.map((t, i) => `<b>threshold ${t.toPrecision(4)}</b><br>${percent(curve.top1[i])} · ${short(curve.macs[i])} multiply-adds<br>${where(curve.shares[i])}`),
    hovertemplate: "%{text}<extra></extra>", line: {color: colour("accent"), width: 1.8}, marker: {size: 4, color: colour("accent")},
  };
  return {data: [line, ...marks(row => row.mean_macs)], layout: shape(node, "mean multiply-adds per image", {yaxis: accuracy()})};
}

function sharesFigure(node) {
  const paints = exits.length > 3 ? ["c1", "c2", "c3", "c4", "c5", "c6", "c7"] : ["c1", "c3", "c5"];
  const data = exits.map((exit, i) => ({
    type: "scatter", mode: "lines", name: `exit ${exit}`, x: curve.macs, y: curve.shares.map(shares => shares[i]),
    stackgroup: "exits", line: {width: 0.5, color: colour(paints[i % paints.length])}, fillcolor: colour(paints[i % paints.length]),
    hovertemplate: `exit ${exit}: %{y:.1%}<extra></extra>`,
  }));
  return {data, layout: shape(node, "mean multiply-adds per image", {
    hovermode: "x unified", yaxis: axis("share of images", {tickformat: ".0%", range: [0, 1]}),
  })};
}

function timeFigure(index) {
  const x = row => row.nanoseconds[index] / 1e6;
  return node => ({
    data: [{
      type: "scatter", mode: "lines+markers", name: "thresholds", x: early.map(x), y: early.map(row => row.top1),
      text: early.map(row => `<b>${plain(row.name)}</b><br>${percent(row.top1)} · ${x(row).toPrecision(3)} ms<br>${where(row.shares)}`),
      hovertemplate: "%{text}<extra></extra>", line: {color: colour("accent"), width: 1.8}, marker: {size: 7, color: colour("accent")},
    }, ...marks(x)],
    layout: shape(node, `milliseconds per image at batch ${batches[index]}`, {yaxis: accuracy()}),
  });
}

chart("cost", costFigure);
chart("shares", sharesFigure);
batches.forEach((batch, index) => chart(`time${batch}`, timeFigure(index)));
