"use strict";
// The page of one run. Reading order: the networks and their selection, the drawing, the other charts.

const {networks, tables, parts} = payload;
const chosen = {table: payload.opened, point: 0};

function at(point) {
  const table = tables[chosen.table];
  return {network: networks[table.networks[point]], score: table.score[point]};
}

function hover(network, score) {
  return `<b>${shown(score)}</b> · ${short(network.macs)} multiply-adds<br>${plain(network.name)}<br>${short(network.params)} parameters`;
}

function scatterFigure(node) {
  const table = tables[chosen.table];
  const points = table.networks.map((_, point) => point);
  const byExit = supernet.exits.map(exit => ({exit, points: points.filter(point => at(point).network.height === exit)}));
  const data = byExit.filter(group => group.points.length).map(({exit, points: own}) => ({
    type: "scatter", mode: "markers", name: supernet.exits.length > 1 ? "exit " + exit : "sub-network",
    x: own.map(point => at(point).network.macs), y: own.map(point => at(point).score), customdata: own,
    text: own.map(point => hover(at(point).network, at(point).score)), hovertemplate: "%{text}<extra></extra>",
    marker: {size: 9, color: exitColour(exit), opacity: 0.85, line: {width: 1, color: colour("paper")}},
  }));
  data.unshift({
    type: "scatter", mode: "lines", name: "front", hoverinfo: "skip", line: {color: colour("second"), width: 1.5, shape: "hv"},
    x: table.front.map(point => at(point).network.macs), y: table.front.map(point => at(point).score),
  });
  const picked = at(chosen.point);
  data.push({
    type: "scatter", mode: "markers", name: "selected", x: [picked.network.macs], y: [picked.score], hoverinfo: "skip",
    marker: {size: 17, symbol: "circle-open", color: colour("second"), line: {width: 2.5}},
  });
  return {data, layout: layout({
    margin: {l: 52, r: 12, t: narrow(node) ? 76 : 36, b: 48},
    xaxis: axis("multiply-adds per image", costScale(table.networks.map(n => networks[n].macs), node)),
    yaxis: metricAxis(""),
  })};
}

function select(point) {
  chosen.point = point;
  const {network, score} = at(point);
  document.getElementById("picked").textContent =
    `${shown(score)} ${payload.metric.name}, ${short(network.macs)} multiply-adds, ${short(network.params)} parameters, ${network.resolution} px: ${network.name}`;
  draw(network);
  for (const row of document.querySelectorAll("#front tbody tr")) {
    if (Number(row.dataset.point) === point) row.setAttribute("aria-current", "true");
    else row.removeAttribute("aria-current");
  }
  for (const id of ["scatter", "cost"]) drawn.get(document.getElementById(id))?.();
}

function move(event) {
  const {networks: all, front} = tables[chosen.table];
  const nextOnFront = front.find(point => point > chosen.point), lastOnFront = front.findLast(point => point < chosen.point);
  const target = {
    ArrowRight: nextOnFront, ArrowLeft: lastOnFront, ArrowUp: chosen.point + 1, ArrowDown: chosen.point - 1,
    Home: 0, End: all.length - 1,
  }[event.key];
  if (!(event.key.startsWith("Arrow") || event.key === "Home" || event.key === "End")) return;
  event.preventDefault();
  if (target !== undefined && target >= 0 && target < all.length) select(target);
}

function listFront() {
  const body = document.querySelector("#front tbody");
  body.replaceChildren(...tables[chosen.table].front.map(point => {
    const {network, score} = at(point), row = element("tr");
    row.dataset.point = point;
    const button = element("button", "", shown(score));
    button.type = "button";
    button.title = "show " + network.name;
    button.addEventListener("click", () => select(point));
    const cells = ["", short(network.macs), short(network.params), network.name].map(text => element("td", "", text));
    cells[0].append(button);
    cells[3].className = "text";
    row.append(...cells);
    return row;
  }));
}

// The other charts

function costFigure(node) {
  const table = tables[chosen.table], small = narrow(node);
  const costliest = networks[table.networks[table.networks.length - 1]], picked = at(chosen.point).network;
  const bars = [[costliest, "costliest", "idle", 1], [picked, "selected", "accent", 1]];
  const data = [0, 1].flatMap(measure => bars.map(([network, name, paint, opacity]) => ({
    type: "bar", orientation: "h", name, legendgroup: name, showlegend: measure === 0,
    y: parts, x: network.parts.map(part => part[measure]), xaxis: measure ? "x2" : "x", yaxis: measure ? "y2" : "y",
    marker: {color: colour(paint), opacity}, text: network.parts.map(part => short(part[measure])),
    hovertemplate: `%{y}, ${name}: %{text} ${measure ? "parameters" : "multiply-adds"}<extra></extra>`, textposition: "none",
  })));
  const one = {exponentformat: "SI", nticks: 5, rangemode: "tozero"}, list = {autorange: "reversed", ticks: "", gridcolor: "rgba(0,0,0,0)"};
  return {data, layout: layout({
    barmode: "group", bargap: .35, bargroupgap: .08, margin: {l: 12, r: 16, t: 36, b: 44},
    legend: {orientation: "h", x: 0, y: 1.02, xanchor: "left", yanchor: "bottom", traceorder: "reversed"},
    xaxis: axis("multiply-adds per image", {...one, domain: small ? [0, 1] : [0, .47], anchor: "y"}),
    yaxis: axis("", {...list, domain: small ? [.58, 1] : [0, 1], anchor: "x"}),
    xaxis2: axis("parameters", {...one, domain: small ? [0, 1] : [.6, 1], anchor: "y2"}),
    yaxis2: axis("", {...list, domain: small ? [0, .42] : [0, 1], anchor: "x2"}),
  })};
}

function joined(curves, name) {
  // A gap between phases keeps the line from crossing their border.
  const x = [], y = [];
  for (const curve of curves) {
    x.push(...curve.steps, null);
    y.push(...curve.values[name], null);
  }
  return {x, y};
}

function validatedPaint(name) {
  const [, exit] = name.split("exit_");
  return exit ? "c" + Math.min(7, Number(exit)) : name === "smallest" ? "second" : "accent";
}

function curvesFigure(node) {
  const {phases, train, validation} = payload, end = phases.length ? phases[phases.length - 1].end || 1 : 1;
  const inner = node.clientWidth - 70;
  const measured = validation.flatMap(curve => Object.values(curve.values).flat()).filter(value => value !== null);
  const line = (curves, name, label, paint, yaxis, mode, form) => ({
    type: "scatter", mode, name: label, ...joined(curves, name), yaxis, xaxis: "x", showlegend: yaxis === "y2",
    line: {color: colour(paint), width: 1.6}, marker: {size: 6, color: colour(paint)},
    hovertemplate: `${label} %{y:${form}} at step %{x:,}<extra></extra>`,
  });
  const withTeacher = phases.filter(phase => phase.teacher && phase.teacher.score !== null);
  const data = [
    line(train, "loss", "loss", "accent", "y", "lines", ".3f"),
    ...payload.validated.map(name => line(validation, name, name.replace("_", " "), validatedPaint(name), "y2", "lines+markers", metricFormat())),
    line(train, "lr", "learning rate", "third", "y3", "lines", ".2~e"),
  ];
  if (withTeacher.length) data.push({
    type: "scatter", mode: "lines", name: "teacher", yaxis: "y2", xaxis: "x", line: {color: colour("third"), width: 1.6, dash: "dot"},
    x: withTeacher.flatMap(phase => [phase.first, (phase.first + phase.end) / 2, phase.end, null]),
    y: withTeacher.flatMap(phase => [...Array(3).fill(phase.teacher.score), null]),
    text: withTeacher.flatMap(phase => [...Array(3).fill(plain(phase.teacher.name)), ""]),
    // A teacher from elsewhere has one output.
    customdata: withTeacher.flatMap(phase => [...Array(3).fill(phase.teacher.exits ? " with all exits" : ""), ""]),
    hovertemplate: `teacher: %{text}, %{y:${metricFormat()}}%{customdata}<extra></extra>`,
  });
  const band = (phase, index) => ({
    type: "rect", xref: "x", yref: "paper", x0: phase.first, x1: phase.end, y0: 0, y1: 1, layer: "below",
    fillcolor: index % 2 ? colour("wash") : "rgba(0,0,0,0)", line: {width: 0},
  });
  const name = (phase, index) => {
    const width = inner * (phase.end - phase.first) / end, full = plain(phase.name);
    return {text: full.length * 7.2 + 8 < width ? full : String(index + 1), x: (phase.first + phase.end) / 2, y: 1, xref: "x", yref: "paper",
      yanchor: "bottom", showarrow: false, font: {size: 12, color: colour(phase.finished ? "ink" : "soft")}};
  };
  return {data, layout: layout({
    shapes: phases.map(band), margin: {l: 58, r: 12, t: 28, b: 48},
    annotations: phases.map(name),
    legend: {orientation: "h", x: 0, y: .60, xanchor: "left", yanchor: "bottom"},
    xaxis: axis("training steps", {range: [-.004 * end, 1.012 * end], anchor: "y3", showgrid: false, tickformat: ","}),
    yaxis: axis("loss", {domain: [.69, 1], rangemode: "tozero", nticks: 5}),
    yaxis2: metricAxis("validation ", {domain: [.24, .60], nticks: 6, ...metricRange(measured)}),
    yaxis3: axis("learning rate", {domain: [0, .16], rangemode: "tozero", nticks: 4, exponentformat: "power"}),
  })};
}

function cornersFigure(node) {
  const shown = tables.filter(table => /\/corners$/.test(table.name));
  const label = table => table.name.startsWith("test/") ? "test" : plain(table.name.split("/")[0]);
  const group = (keeps, name, paint) => {
    const points = shown.flatMap(table => table.networks.map((n, i) => ({x: label(table), y: table.score[i], network: networks[n]})))
      .filter(point => point.network.mbconv === keeps);
    return {
      type: "box", name, visible: keeps || !shown.some(table => table.networks.some(n => networks[n].mbconv)) || "legendonly", boxpoints: "all", jitter: .55, pointpos: 0, offsetgroup: name, x: points.map(p => p.x), y: points.map(p => p.y),
      text: points.map(p => hover(p.network, p.y)), hovertemplate: "%{text}<extra></extra>", hoveron: "points",
      fillcolor: "rgba(0,0,0,0)", line: {width: 1.2, color: colour(paint)}, marker: {size: narrow(node) ? 3.5 : 5, color: colour(paint), opacity: .5},
    };
  };
  const data = [group(true, "with MBConv", "accent"), group(false, "without MBConv", "second")].filter(trace => trace.x.length);
  return {data, layout: layout({
    boxmode: "group", showlegend: data.length > 1, boxgap: .25,
    xaxis: axis("", {type: "category", categoryorder: "array", categoryarray: shown.map(label), showgrid: false}),
    yaxis: metricAxis(""),
  })};
}

function confusionFigure() {
  const {classes, images} = payload.confusion, names = classes.map(plain), few = classes.length <= 12;
  // Long names would leave no room for the chart; whole ones are in what the pointer shows.
  const labels = classes.map(name => plain(name.length > 20 ? name.slice(0, 19) + "…" : name));
  const places = classes.map((_, index) => index), named = {tickvals: places, ticktext: labels, showgrid: false};
  const shares = images.map(row => {
    const sum = row.reduce((one, other) => one + other, 0) || 1;
    return row.map(count => count / sum);
  });
  const hovers = images.map((row, own) => row.map((count, other) => `${names[own]} taken for ${names[other]}: ${count}`));
  return {
    data: [{
      type: "heatmap", x: places, y: places, z: shares, text: few ? images : hovers, customdata: hovers,
      ...(few ? {texttemplate: "%{text}", xgap: 2, ygap: 2} : {}), showscale: false, zmin: 0, zmax: 1.2,
      colorscale: [[0, colour("wash")], [1, colour("accent")]],
      hovertemplate: "%{customdata}<extra></extra>", textfont: {size: 12, color: colour("ink")},
    }],
    layout: layout({
      margin: {l: 52, r: 12, t: 12, b: 48},
      xaxis: axis("taken for", named), yaxis: axis("", {...named, autorange: "reversed"}),
    }),
  };
}

// What happens at the start

function showTable(index) {
  const table = tables[index];
  chosen.table = index;
  listFront();
  if (table.first !== null) select(table.first);
  document.getElementById("scatter").setAttribute("aria-label", `${payload.metric.name} against multiply-adds, ${table.networks.length} sub-networks, ${table.title}`);
}

if (tables.length) {
  explainDrawing();
  chart("scatter", scatterFigure, node => node.on("plotly_click", event => {
    const point = event.points[0]?.customdata;
    if (point !== undefined) select(point);
  }));
  chart("cost", costFigure);
  chart("corners", cornersFigure);
  showTable(chosen.table);
  const menu = document.getElementById("table");
  menu.value = String(chosen.table);
  menu.addEventListener("change", () => showTable(Number(menu.value)));
  document.getElementById("scatter").addEventListener("keydown", move);
}
chart("curves", curvesFigure);
if (payload.exits) chart("agreement", agreementFigure);
if (payload.confusion) chart("confusion", confusionFigure);
