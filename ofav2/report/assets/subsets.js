"use strict";
// The page of a pruned network: every subset of exits against what it costs.

const {subsets, front, chosen, whole, last, batches} = payload;

function about(subset) {
  const many = subset.exits.length > 1 ? "exits " : "exit ";
  return `<b>${many}${subset.exits.join(" · ")}</b><br>${percent(subset.top1)} top-1, ${percent(subset.top5)} top-5`
    + `<br>${short(subset.macs)} multiply-adds, ${short(subset.params)} parameters`;
}

function marked(name, places, x, marker, more) {
  const points = places.map(place => subsets[place]);
  return Object.assign({
    type: "scatter", mode: "markers", name, x: points.map(x), y: points.map(subset => subset.top1),
    text: points.map(about), hovertemplate: "%{text}<extra></extra>", marker,
  }, more);
}

function figure(title, x) {
  return node => {
    const ordered = [...front].sort((a, b) => x(subsets[a]) - x(subsets[b]));
    return {
      data: [
        marked("all subsets", subsets.map((_, place) => place), x, {size: 6, color: colour("third"), opacity: .55}),
        marked("front", ordered, x, {size: 8, color: colour("accent")}, {mode: "lines+markers", line: {color: colour("accent"), width: 1.8}}),
        marked(payload.whole_name, [whole], x, {symbol: "square", size: 11, color: colour("ink")}),
        marked("last exit alone", [last], x, {symbol: "diamond", size: 11, color: colour("ink")}),
        marked("chosen", [chosen], x, {symbol: "circle-open", size: 16, color: colour("second"), line: {width: 3}}),
      ],
      layout: layout({
        showlegend: true, margin: {l: 52, r: 16, t: narrow(node) ? 88 : 40, b: 48},
        xaxis: axis(title, {rangemode: "tozero"}), yaxis: axis("validation top-1", {tickformat: ".1~%"}),
      }),
    };
  };
}

chart("macs", figure("multiply-adds per image", subset => subset.macs));
chart("params", figure("parameters", subset => subset.params));
batches.forEach((batch, place) => chart(`time${batch}`, figure(`milliseconds per image at batch ${batch}`, subset => subset.nanoseconds[place] / 1e6)));
chart("agreement", agreementFigure);
