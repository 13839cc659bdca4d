"use strict";
// The page of a search. Reading order: the networks and their selection, then the other charts.

const {networks, front, costs, rounds, finalists} = payload;
const chosen = {point: 0};

function hover(network) {
  const guess = network.predicted === null ? "" : `, predicted ${shown(network.predicted)}`;
  return `<b>${shown(network.value)}</b> · round ${network.round}${guess}<br>${plain(network.name)}<br>${allCosts(network)}`;
}

// One colour for each round, from light to dark; a single round takes the middle.
function roundColours() {
  const paints = [1, 2, 3, 4, 5].map(i => colour("c" + i));
  return paints.map((paint, index) => [index / (paints.length - 1), paint]);
}

function roundMarker(own, node, more) {
  const last = Math.max(...rounds.map(one => one.number), 1);
  return Object.assign({
    size: 8, color: own.map(network => network.round), colorscale: roundColours(), cmin: 0, cmax: last, opacity: .85,
    line: {width: 1, color: colour("paper")},
    colorbar: {title: {text: "round", font: {size: 12, color: colour("soft")}}, thickness: 8, outlinewidth: 0, len: .9,
      tickfont: {size: 11, color: colour("soft")}, xpad: narrow(node) ? 2 : 10, tickformat: "d", nticks: 6},
  }, more);
}

function scatterFigure(node) {
  const best = front.map(point => networks[point]), picked = networks[chosen.point], simple = costs.length === 1;
  const data = [{
    type: "scatter", mode: simple ? "lines" : "markers", name: "front", hoverinfo: "skip", showlegend: true,
    x: best.map(costOf), y: best.map(network => network.value),
    ...(simple ? {line: {color: colour("second"), width: 1.5}} : {marker: {size: 13, symbol: "circle-open", color: colour("second"), line: {width: 1.5}}}),
  }, {
    type: "scatter", mode: "markers", name: "network", showlegend: false, customdata: networks.map((_, point) => point),
    x: networks.map(costOf), y: networks.map(network => network.value), text: networks.map(hover),
    hovertemplate: "%{text}<extra></extra>", marker: roundMarker(networks, node),
  }, {
    type: "scatter", mode: "markers", name: "selected", x: [costOf(picked)], y: [picked.value], hoverinfo: "skip",
    marker: {size: 17, symbol: "circle-open", color: colour("second"), line: {width: 2.5}},
  }];
  return {data, layout: layout({xaxis: costAxis(networks.map(costOf), node), yaxis: metricAxis("")})};
}

function select(point) {
  chosen.point = point;
  const network = networks[point], place = front.indexOf(point), last = place >= 0 && finalists ? finalists[place] : null;
  const both = last ? `${shown(last.confirmed)} ${payload.metric.name} confirmed, ${shown(last.searched)} in the search` : `${shown(network.value)} ${payload.metric.name}`;
  document.getElementById("picked").textContent = `${place >= 0 ? `#${place + 1}: ` : ""}${both}, ${allCosts(network)}, ${network.resolution} px: ${network.name}`;
  draw(network);
  for (const row of document.querySelectorAll("#front tbody tr")) {
    if (Number(row.dataset.point) === point) row.setAttribute("aria-current", "true");
    else row.removeAttribute("aria-current");
  }
  drawn.get(document.getElementById("scatter"))?.();
}

function byCost() {
  return networks.map((_, point) => point).sort((a, b) => costOf(networks[a]) - costOf(networks[b]) || a - b);
}

function move(event) {
  if (!(event.key.startsWith("Arrow") || event.key === "Home" || event.key === "End")) return;
  event.preventDefault();
  const all = byCost(), place = all.indexOf(chosen.point), line = all.filter(point => front.includes(point));
  const target = {
    ArrowRight: line.find(point => all.indexOf(point) > place), ArrowLeft: line.findLast(point => all.indexOf(point) < place),
    ArrowUp: all[place + 1], ArrowDown: all[place - 1], Home: all[0], End: all[all.length - 1],
  }[event.key];
  if (target !== undefined) select(target);
}

function listFront() {
  document.querySelector("#front tbody").replaceChildren(...front.map((point, place) => {
    const network = networks[point], row = element("tr"), button = element("button", "", shown(finalists ? finalists[place].confirmed : network.value));
    row.dataset.point = point;
    button.type = "button";
    button.title = "show " + network.name;
    button.addEventListener("click", () => select(point));
    const value = element("td");
    value.append(button);
    row.append(element("td", "", String(place + 1)), value, ...costs.map(({name}) => element("td", "", shownCost(name, network.costs[name]))), element("td", "text", network.name));
    return row;
  }));
}

// The other charts

function finalistsFigure(node) {
  const x = front.map(point => costOf(networks[point])), bars = finalists.every(one => one.band);
  const names = front.map((point, place) => `#${place + 1} ${plain(networks[point].name)}`);
  const confirmed = finalists.map(one => one.confirmed);
  return {data: [{
    type: "scatter", mode: "markers", name: "on the images of the search", x, y: finalists.map(one => one.searched), text: names,
    marker: {size: 8, symbol: "circle-open", color: colour("third"), line: {width: 1.5}},
    hovertemplate: `%{text}<br>search %{y:${metricFormat()}}<extra></extra>`,
  }, {
    type: "scatter", mode: "markers", name: "confirmed on others", x, y: confirmed, text: names,
    marker: {size: 9, color: colour("accent")}, hovertemplate: `%{text}<br>confirmed %{y:${metricFormat()}}<extra></extra>`,
    ...(bars ? {error_y: {
      type: "data", symmetric: false, thickness: 1.2, width: 3, color: colour("accent"),
      array: finalists.map(one => one.band[1] - one.confirmed), arrayminus: finalists.map(one => one.confirmed - one.band[0]),
    }} : {}),
  }], layout: layout({
    margin: {l: 52, r: 12, t: narrow(node) ? 60 : 36, b: 48}, xaxis: costAxis(x, node), yaxis: metricAxis(""),
  })};
}

function adaptationFigure(node) {
  const x = front.map(point => costOf(networks[point])), names = front.map((point, place) => `#${place + 1} ${plain(networks[point].name)}`);
  const points = (name, y, more) => ({
    type: "scatter", mode: "markers", name, x, y, text: names, hovertemplate: `%{text}<br>${name} %{y:${metricFormat()}}<extra></extra>`, ...more,
  });
  return {data: [{
    type: "scatter", mode: "lines", x: x.flatMap(cost => [cost, cost, null]), y: payload.before.flatMap((value, place) => [value, payload.adapted[place], null]),
    hoverinfo: "skip", showlegend: false, line: {color: colour("line"), width: 2},
  }, points("before", payload.before, {marker: {size: 8, symbol: "circle-open", color: colour("third"), line: {width: 1.5}}}),
  points("after", payload.adapted, {marker: {size: 9, color: colour("accent")}})],
  layout: layout({margin: {l: 52, r: 12, t: narrow(node) ? 60 : 36, b: 48}, xaxis: costAxis(x, node), yaxis: metricAxis("")})};
}

function volumeFigure() {
  const done = rounds.filter(one => one.hypervolume !== null);
  let sum = 0;
  const x = done.map(one => sum += one.measured);
  return {data: [{
    type: "scatter", mode: "lines+markers", x, y: done.map(one => one.hypervolume), line: {color: colour("accent"), width: 1.8},
    marker: {size: 7, color: colour("accent")}, text: done.map(one => one.number), showlegend: false,
    hovertemplate: "%{y:.5~g} after %{x} measurements (round %{text})<extra></extra>",
  }], layout: layout({
    margin: {l: 62, r: 12, t: 12, b: 48}, xaxis: axis("measurements", {rangemode: "tozero"}), yaxis: axis("hypervolume", {exponentformat: "power", nticks: 5}),
  })};
}

function predictedFigure(node) {
  const own = networks.filter(network => network.predicted !== null), small = narrow(node);
  const ends = [Math.min(...own.flatMap(n => [n.predicted, n.value])), Math.max(...own.flatMap(n => [n.predicted, n.value]))];
  const ranked = rounds.filter(one => one.tau !== null);
  return {data: [{
    type: "scatter", mode: "lines", x: ends, y: ends, hoverinfo: "skip", showlegend: false, line: {color: colour("third"), width: 1, dash: "dot"},
  }, {
    type: "scatter", mode: "markers", x: own.map(n => n.predicted), y: own.map(n => n.value), text: own.map(hover), showlegend: false,
    hovertemplate: "%{text}<extra></extra>", marker: roundMarker(own, node, {showscale: false}),
  }, {
    type: "scatter", mode: "lines+markers", x: ranked.map(one => one.number), y: ranked.map(one => one.tau), xaxis: "x2", yaxis: "y2",
    showlegend: false, line: {color: colour("accent"), width: 1.8}, marker: {size: 7, color: colour("accent")},
    hovertemplate: "round %{x}: tau %{y:.2f}<extra></extra>",
  }], layout: layout({
    margin: {l: 52, r: 12, t: 16, b: 48},
    xaxis: metricAxis("predicted ", {domain: small ? [0, 1] : [0, .56], anchor: "y", nticks: 6}),
    yaxis: metricAxis("measured ", {domain: small ? [.5, 1] : [0, 1], anchor: "x", nticks: 6}),
    xaxis2: axis("round", {domain: small ? [0, 1] : [.68, 1], anchor: "y2", tickformat: "d", dtick: Math.ceil(rounds.length / 6)}),
    yaxis2: axis("tau", {domain: small ? [0, .34] : [0, 1], anchor: "x2", range: [Math.min(-.05, ...ranked.map(one => one.tau - .05)), 1.02]}),
  })};
}

function effectsFigure(node) {
  const names = payload.effects.map(factor => factor.name), points = payload.effects.flatMap(({name, choices}) => [...choices].sort((a, b) => a.effect - b.effect).map((choice, rank) => ({name, rank, ...choice})));
  const scale = payload.metric.unit === "%" ? 100 : 1, unit = scale === 100 ? " points" : "";
  const letters = choice => choice.replace(/mbconv/, "M").replace(/conv/, "C").replace(/transform/, "T");
  return {data: [{
    type: "scatter", mode: "lines", x: payload.effects.flatMap(({choices}) => [...[Math.min, Math.max].map(end => scale * end(...choices.map(c => c.effect))), null]),
    y: names.flatMap(name => [name, name, null]), hoverinfo: "skip", showlegend: false, line: {color: colour("line"), width: 6},
  }, {
    type: "scatter", mode: "markers+text", x: points.map(p => scale * p.effect), y: points.map(p => p.name), text: points.map(p => narrow(node) && p.name.endsWith("branches") ? "" : letters(p.choice)),
    textposition: points.map(p => p.rank % 2 ? "bottom center" : "top center"), textfont: {size: 11, color: colour("ink")}, cliponaxis: false, showlegend: false,
    marker: {size: 7, color: colour("accent")}, error_x: {type: "data", array: points.map(p => scale * p.error), thickness: 1, width: 2, color: colour("accent")},
    customdata: points.map(p => [p.choice, p.error * scale, p.networks]),
    hovertemplate: `%{y} %{customdata[0]}: %{x:+.2f}${unit} ± %{customdata[1]:.2f}<br>in %{customdata[2]} networks<extra></extra>`,
  }], layout: layout({
    margin: {l: 12, r: 16, t: 16, b: 48},
    xaxis: axis(`effect on ${payload.metric.name}${scale === 100 ? ", percentage points" : ""}`, {zeroline: true, zerolinecolor: colour("soft"), nticks: narrow(node) ? 5 : 9}),
    yaxis: axis("", {autorange: "reversed", type: "category", categoryorder: "array", categoryarray: names, ticks: "", dtick: 1}),
  })};
}

// What happens at the start

if (networks.length) {
  explainDrawing();
  chart("scatter", scatterFigure, node => node.on("plotly_click", event => {
    const point = event.points[0]?.customdata;
    if (point !== undefined) select(point);
  }));
  listFront();
  select(front[Math.floor(front.length / 2)]);
  document.getElementById("scatter").addEventListener("keydown", move);
  followCostMenu("scatter", "finalists", "adaptation");
}
if (finalists) chart("finalists", finalistsFigure);
if (payload.adapted) chart("adaptation", adaptationFigure);
chart("volume", volumeFigure);
if (networks.some(network => network.predicted !== null)) chart("predicted", predictedFigure);
chart("effects", effectsFigure);
