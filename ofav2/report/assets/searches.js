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

// A front in several costs is no line over one of them.
function frontsFigure(node) {
  const mode = payload.costs.length === 1 ? "lines+markers" : "markers";
  const data = payload.fronts.map((front, index) => ({
    type: "scatter", mode, name: plain(front.search), x: front.networks.map(costOf), y: front.networks.map(one => one.value),
    text: front.networks.map(one => `<b>${shown(one.value)}</b> · ${allCosts(one)}<br>${plain(one.name)}`),
    hovertemplate: `${plain(front.search)}: %{text}<extra></extra>`, ...searchLine(index),
  }));
  return {data, layout: shared(node, {
    xaxis: costAxis(data.flatMap(({x}) => x), node),
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
followCostMenu("fronts");
chart("volumes", volumesFigure);
