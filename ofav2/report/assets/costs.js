"use strict";
// Costs of networks: what the pages of one search and of several share.

// Which of them is on the horizontal axes, by its place.
const shownBy = {cost: 0};

// A cost as a reader has it: nanoseconds become milliseconds.
function shownCost(name, value) {
  if (name === "latency") return Number((value / 1e6).toPrecision(3)) + " ms";
  return name === "memory" ? short(value) + "B" : short(value);
}

function allCosts(network) {
  return payload.costs.map(({name, title}) => `${shownCost(name, network.costs[name])} ${title}`).join(", ");
}

function costOf(network) {
  return network.costs[payload.costs[shownBy.cost].name];
}

function costAxis(values, node) {
  const {title, name} = payload.costs[shownBy.cost];
  return axis(title + ({macs: " per image", memory: ", bytes", latency: ", ns"}[name] ?? ""), costScale(values, node));
}

// Draws charts again when another cost is chosen from the menu, which is there where there are several.
function followCostMenu(...ids) {
  const menu = document.getElementById("cost-menu");
  if (!menu) return;
  menu.value = "0";
  menu.addEventListener("change", () => {
    shownBy.cost = Number(menu.value);
    for (const id of ids) drawn.get(document.getElementById(id))?.();
  });
}
