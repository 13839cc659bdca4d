"use strict";
// What the charts of all pages share: colours out of the style sheet, and redrawing when those or the width change.

const payload = JSON.parse(document.getElementById("payload").textContent);
const drawn = new Map();

function colour(name) {
  return getComputedStyle(document.documentElement).getPropertyValue("--" + name).trim();
}

// Plotly reads a small HTML of its own in texts; what comes from a run is text only.
function plain(text) {
  return String(text).replace(/&/g, "&amp;").replace(/</g, "&lt;").replace(/>/g, "&gt;");
}

function short(number) {
  for (const [size, unit] of [[1e9, " G"], [1e6, " M"], [1e3, " k"]]) {
    if (number >= size) return Number((number / size).toPrecision(3)) + unit;
  }
  return String(number);
}

function percent(share) {
  return (100 * share).toFixed(1) + " %";
}

// A value of the run's metric, its axis, and how plotly writes it in a hover text.
function shown(value) {
  const {unit} = payload.metric;
  return unit === "%" ? percent(value) : `${Number(value.toPrecision(3))} ${unit}`.trim();
}

function metricAxis(prefix, more) {
  const {name, unit} = payload.metric;
  return axis(prefix + name + (unit && unit !== "%" ? `, ${unit}` : ""), Object.assign(unit === "%" ? {tickformat: ".1~%"} : {}, more));
}

// One value alone, or equal ones, would get an axis from a hundred points below it to as many above.
function metricRange(values) {
  const {unit} = payload.metric;
  if (!values.length) return {range: [0, 1]};
  const low = Math.min(...values), high = Math.max(...values), least = unit === "%" ? .02 : .02 * Math.abs(high) || .02;
  return high - low < least ? {range: [(low + high) / 2 - least, (low + high) / 2 + least]} : {};
}

function metricFormat() {
  return payload.metric.unit === "%" ? ".1%" : ".3~g";
}

function narrow(node) {
  return node.clientWidth < 560;
}

function axis(title, more) {
  return Object.assign({
    title: {text: title, font: {size: 12, color: colour("soft")}, standoff: 8},
    gridcolor: colour("line"), linecolor: colour("line"), zeroline: false, automargin: true,
    tickfont: {size: 11, color: colour("soft")}, fixedrange: true,
  }, more);
}

// A logarithmic axis with round numbers, written as a person says them. A user's own cost may be zero or less, which has
// no logarithm: such an axis is linear.
function costScale(values, node) {
  if (values.some(value => value <= 0)) return {type: "linear"};
  if (!values.length) return {type: "log"};
  const digits = narrow(node) ? [1, 3] : [1, 2, 5];
  const low = Math.min(...values), high = Math.max(...values), tickvals = [];
  for (let power = Math.floor(Math.log10(low)); power <= Math.log10(high); power++) {
    tickvals.push(...digits.map(digit => digit * 10 ** power));
  }
  return {type: "log", tickvals, ticktext: tickvals.map(short)};
}

function layout(more) {
  return Object.assign({
    paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)",
    font: {family: "system-ui, -apple-system, Segoe UI, Roboto, Arial, sans-serif", size: 12, color: colour("ink")},
    margin: {l: 52, r: 12, t: 36, b: 48}, hovermode: "closest", dragmode: false,
    hoverlabel: {bgcolor: colour("paper"), bordercolor: colour("soft"), font: {color: colour("ink"), size: 12}, align: "left"},
    legend: {orientation: "h", x: 0, y: 1.02, xanchor: "left", yanchor: "bottom", font: {size: 12}},
  }, more);
}

// A figure is a function of the node, so that it can be drawn again in other colours or another width.
function chart(id, figure, then) {
  const node = document.getElementById(id);
  if (!node) return null;
  const draw = () => {
    const {data, layout: shape} = figure(node);
    Object.assign(shape, {width: node.clientWidth, height: node.clientHeight});
    return Plotly.react(node, data, shape, {displayModeBar: false, responsive: false});
  };
  drawn.set(node, draw);
  draw().then(() => { node.dataset.drawn = "yes"; if (then) then(node); });
  return node;
}

// How often two exits give the same class, where the page has measured it.
function agreementFigure() {
  const {exits, agree} = payload.exits, names = exits.map(exit => "exit " + exit);
  const text = agree.map(row => row.map(share => (100 * share).toFixed(1)));
  return {
    data: [{
      type: "heatmap", x: names, y: names, z: agree, text, texttemplate: "%{text}", xgap: 2, ygap: 2, showscale: false,
      colorscale: [[0, colour("wash")], [1, colour("accent")]], zmin: Math.min(...agree.flat(), .95) - .1, zmax: 1.15,
      hovertemplate: "%{y} and %{x} agree on %{text} %<extra></extra>", textfont: {size: 12, color: colour("ink")},
    }],
    layout: layout({
      margin: {l: 52, r: 12, t: 12, b: 32},
      xaxis: axis("", {showgrid: false}), yaxis: axis("", {autorange: "reversed", showgrid: false}),
    }),
  };
}

function redraw() {
  for (const draw of drawn.values()) draw();
  hintAtScrolling();
}

// What can be scrolled sideways says so; a bar shows on no phone until one scrolls.
function hintAtScrolling() {
  for (const box of document.querySelectorAll(".scroll")) {
    const hint = box.previousElementSibling?.classList.contains("hint") ? box.previousElementSibling : document.createElement("p");
    hint.className = "hint";
    hint.textContent = "Scroll sideways for all columns.";
    hint.hidden = box.scrollWidth <= box.clientWidth + 1;
    box.before(hint);
  }
}

matchMedia("(prefers-color-scheme: dark)").addEventListener("change", redraw);
// On paper nothing can be unfolded.
window.addEventListener("beforeprint", () => {
  for (const details of document.querySelectorAll("details")) details.open = true;
  redraw();
});
window.addEventListener("afterprint", redraw);
matchMedia("print").addEventListener("change", redraw);
let width = window.innerWidth, waiting = 0;
window.addEventListener("resize", () => {
  if (window.innerWidth === width) return;
  width = window.innerWidth;
  clearTimeout(waiting);
  waiting = setTimeout(redraw, 80);
});
window.addEventListener("load", hintAtScrolling);
