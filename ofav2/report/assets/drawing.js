"use strict";
// The drawing of a sub-network: a row per stage, a cell per block position.

const {supernet} = payload;

function exitColour(exit) {
  const known = supernet.exits;
  return colour(known.length === 1 ? "c3" : "c" + Math.min(7, known.indexOf(exit) + 1));
}

function element(tag, className, text) {
  const made = document.createElement(tag);
  if (className) made.className = className;
  if (text !== undefined) made.textContent = text;
  return made;
}

function draw(network) {
  const rows = supernet.stages.map((stage, index) => {
    const runs = index < network.height, row = element("div", runs ? "stage" : "stage idle");
    const name = element("div", "name", "Stage " + (index + 1));
    name.append(element("span", "", stage.module ?? `${stage.channels} ch, stride ${stage.stride}${stage.squeeze_excite ? ", SE" : ""}`));
    const blocks = element("div", "blocks");
    blocks.style.setProperty("--blocks", supernet.blocks);
    for (let block = 0; block < supernet.blocks; block++) {
      blocks.append(runs && block < network.depth[index] ? drawBlock(network, index, block) : element("div", "block off", "off"));
    }
    row.append(name, blocks);
    if (supernet.exits.includes(index + 1)) {
      const taken = network.height === index + 1;
      row.append(element("div", taken ? "exit taken" : "exit", "exit " + (index + 1)));
    }
    return row;
  });
  document.getElementById("drawing").replaceChildren(...rows);
}

function drawBlock(network, stage, block) {
  const kernel = network.kernel[stage][block], expand = network.expand[stage][block], level = network.level[stage][block];
  const cell = element("div", "block");
  if (kernel !== null) {
    cell.append(kernelSquare(kernel), element("span", "", `${kernel}×${kernel}  e${expand}`));
    const bar = element("div", "width");
    bar.style.width = 100 * expand / supernet.expand + "%";
    cell.append(bar);
  } else {
    cell.append(element("span", "soft", level[0] === "fixed" ? "as in timm" : "no MBConv"));
  }
  if (supernet.branches.length > 1) {
    const marks = element("div", "branches");
    for (const branch of supernet.branches) {
      const mark = element("i", level.includes(branch) ? "on" : "", {mbconv: "M", conv: "C", transform: "T"}[branch]);
      mark.title = branch + (level.includes(branch) ? "" : ", off");
      marks.append(mark);
    }
    cell.append(marks);
  }
  return cell;
}

function kernelSquare(kernel) {
  const unit = 2.6, side = kernel * unit, space = "http://www.w3.org/2000/svg";
  const svg = document.createElementNS(space, "svg");
  svg.setAttribute("width", side + 1);
  svg.setAttribute("height", side + 1);
  svg.setAttribute("aria-hidden", "true");
  const path = document.createElementNS(space, "path");
  let lines = "";
  for (let i = 0; i <= kernel; i++) lines += `M${i * unit + .5} .5V${side + .5}M.5 ${i * unit + .5}H${side + .5}`;
  path.setAttribute("d", lines);
  path.setAttribute("stroke", "currentColor");
  path.setAttribute("stroke-width", ".7");
  svg.append(path);
  return svg;
}

function explainDrawing() {
  document.getElementById("legend").textContent = supernet.branches[0] === "fixed" ? "" : "Grid: kernel. Bar and e: expansion."
    + (supernet.branches.length > 1 ? " M: inverted residual (MBConv), C: 1×1 convolution, T: pooling or identity." : "")
    + (supernet.stages.some(stage => stage.squeeze_excite) ? " SE: squeeze-and-excite." : "");
}
