"use strict";
// The scatter: bytes (log scale) against a metric, with the front, the budget and names that keep clear of each other.

const UNITS = ["B", "KiB", "MiB", "GiB", "TiB"];
const SVG = "http://www.w3.org/2000/svg";
const MARGIN = { top: 56, right: 18, bottom: 50, left: 54 };
const SHAPES = {
  circle: "M-6 0A6 6 0 1 0 6 0A6 6 0 1 0-6 0Z",
  square: "M-5.4-5.4H5.4V5.4H-5.4Z",
  diamond: "M0-7.4L7.4 0L0 7.4L-7.4 0Z",
  triangle: "M0-7L6.9 5.4H-6.9Z",
  wedge: "M0 7L6.9-5.4H-6.9Z",
  cross: "M-6.4-3.4L-3.4-6.4L0-3L3.4-6.4L6.4-3.4L3-0L6.4 3.4L3.4 6.4L0 3L-3.4 6.4L-6.4 3.4L-3 0Z",
  plus: "M-2.3-6.8H2.3V-2.3H6.8V2.3H2.3V6.8H-2.3V2.3H-6.8V-2.3H-2.3Z",
};
const REACH = [1, 1.8, 2.8, 4];
const SIDES = [[0.8, -0.8], [-0.8, -0.8], [0.8, 0.8], [-0.8, 0.8], [1, 0], [-1, 0], [0, -1.2], [0, 1.2]];

// An element with attributes; text is always text, never markup.
function element(space, tag, attributes, children) {
  const node = space ? document.createElementNS(space, tag) : document.createElement(tag);
  for (const [name, value] of Object.entries(attributes || {})) {
    if (value === true) node.setAttribute(name, "");
    else if (value !== false && value !== null && value !== undefined) node.setAttribute(name, value);
  }
  node.append(...(children || []).filter((child) => child !== null));
  return node;
}
const svg = (tag, attributes, ...children) => element(SVG, tag, attributes, children);
const html = (tag, attributes, ...children) => element(null, tag, attributes, children);

// Three or four digits and a binary unit, as the package writes bytes.
function humanBytes(size) {
  let [value, unit] = [size, 0];
  while (Math.abs(value) >= 1023.5 && unit < UNITS.length - 1) [value, unit] = [value / 1024, unit + 1];
  if (unit === 0) return `${Math.round(size)} B`;
  const digits = Math.abs(value) < 9.995 ? 2 : Math.abs(value) < 99.95 ? 1 : 0;
  return `${value.toFixed(digits)} ${UNITS[unit]}`;
}
const shortBytes = (size) => humanBytes(size).replace(/\.0+ /, " ").replace(/(\.\d)0 /, "$1 ");

// "3.4GB", "512 MiB", "2g", "4096" -> bytes (powers of 1024), null for anything else.
function parseBytes(text) {
  const found = /^\s*(\d+(?:\.\d*)?|\.\d+)\s*(?:([KMGT])(?:i?B)?|B)?\s*$/i.exec(text);
  if (!found) return null;
  const size = Math.floor(Number(found[1]) * 1024 ** " KMGT".indexOf((found[2] || " ").toUpperCase()));
  return size >= 1 ? size : null;
}

// The smallest first; a candidate is beaten by one no larger and no worse, and better in one of the two.
function frontOf(items) {
  const kept = [];
  for (const item of [...items].sort((one, two) => one.size - two.size || two.good - one.good)) {
    const last = kept[kept.length - 1];
    if (!last || item.good > last.good || (item.size === last.size && item.good === last.good)) kept.push(item);
  }
  return kept;
}

// Powers of two, with steps between them where fewer than four would show.
function byteTicks(low, high, room) {
  for (const parts of [[1], [1, 1.5], [1, 1.25, 1.5, 1.75]]) {
    const ticks = [];
    for (let power = Math.floor(low); power <= high; power++) {
      ticks.push(...parts.map((part) => part * 2 ** power).filter((tick) => Math.log2(tick) >= low && Math.log2(tick) <= high));
    }
    const every = Math.ceil(ticks.length / room);
    if (ticks.length >= 4 || parts.length === 4) return ticks.filter((_, at) => at % every === 0);
  }
}

function valueTicks(low, high, wanted) {
  const rough = (high - low) / wanted;
  const base = 10 ** Math.floor(Math.log10(rough));
  const step = base * [1, 2, 2.5, 5, 10].find((factor) => factor * base >= rough);
  const digits = Math.max(0, -Math.floor(Math.log10(step) + 1e-9) + (step / base === 2.5 ? 1 : 0));
  const ticks = [];
  for (let at = Math.ceil(low / step); at * step <= high; at++) ticks.push([at * step, (at * step).toFixed(digits)]);
  return ticks;
}

const overlap = (one, two) =>
  Math.max(Math.min(one[2], two[2]) - Math.max(one[0], two[0]), 0) *
  Math.max(Math.min(one[3], two[3]) - Math.max(one[1], two[1]), 0);
const areaOf = (box) => (box[2] - box[0]) * (box[3] - box[1]);

// For each anchor the nearest free box of its size, null where none is free.
function placeNames(anchors, sizes, frame, gap, lines) {
  const taken = anchors.map(([x, y]) => [x - gap, y - gap, x + gap, y + gap]);
  return anchors.map(([x, y], at) => {
    const [width, height] = sizes[at];
    let best = null;
    for (const reach of REACH) {
      for (const [across, down] of SIDES) {
        const left = x + across * gap * reach - width * (0.5 - 0.5 * across);
        const top = y + down * gap * reach - height * (0.5 - 0.5 * down);
        const box = [left, top, left + width, top + height];
        const covered = taken.reduce((sum, other) => sum + overlap(box, other), areaOf(box) - overlap(box, frame));
        if (covered > 1) continue;
        const cost = lines.reduce((sum, line) => sum + overlap(box, line), 0);
        if (!best || cost < best.cost - 1e-6) best = { box, cost };
      }
    }
    if (best) taken.push(best.box);
    return best && best.box;
  });
}

// Scales for what is shown: `x` and `y` map bytes and values to pixels, `bytesAt` maps back.
function scalesFor(items, presets, width, height) {
  const logs = items.map((item) => Math.log2(item.size));
  let [low, high] = [Math.min(...logs), Math.max(...logs)];
  for (const preset of presets.map((budget) => Math.log2(budget.bytes))) {
    if (preset > low - 1 && preset < high + 1) [low, high] = [Math.min(low, preset), Math.max(high, preset)];
  }
  const pad = Math.max(0.09 * (high - low), 0.25);
  [low, high] = [low - pad, high + pad];
  let [bottom, top] = [Math.min(...items.map((item) => item.low)), Math.max(...items.map((item) => item.high))];
  const room = 0.1 * (top - bottom) || Math.abs(top) * 0.1 || 1;
  [bottom, top] = [bottom - room, top + room];
  const [left, right] = [MARGIN.left, width - MARGIN.right];
  const [floor, ceiling] = [height - MARGIN.bottom, MARGIN.top];
  return {
    low, high, bottom, top, left, right, floor, ceiling,
    x: (size) => left + ((Math.log2(size) - low) / (high - low)) * (right - left),
    y: (value) => floor - ((value - bottom) / (top - bottom)) * (floor - ceiling),
    bytesAt: (x) => Math.round(2 ** (low + ((Math.min(Math.max(x, left), right) - left) / (right - left)) * (high - low))),
  };
}

function drawFrame(scales, labels) {
  const { left, right, floor, ceiling } = scales;
  const nodes = [];
  for (const tick of byteTicks(scales.low, scales.high, Math.max(3, Math.floor((right - left) / 62)))) {
    const x = scales.x(tick);
    nodes.push(svg("line", { class: "grid", x1: x, x2: x, y1: ceiling, y2: floor }));
    nodes.push(svg("text", { x, y: floor + 18, "text-anchor": "middle" }, shortBytes(tick)));
  }
  for (const [tick, text] of valueTicks(scales.bottom, scales.top, Math.max(3, Math.floor((floor - ceiling) / 64)))) {
    const y = scales.y(tick);
    nodes.push(svg("line", { class: "grid", x1: left, x2: right, y1: y, y2: y }));
    nodes.push(svg("text", { x: left - 10, y: y + 4, "text-anchor": "end" }, text));
  }
  nodes.push(svg("line", { class: "axis", x1: left, x2: right, y1: floor, y2: floor }));
  nodes.push(svg("text", { class: "title", x: right, y: floor + 39, "text-anchor": "end" }, labels.x));
  nodes.push(svg("text", { class: "title", x: 14, y: 22 }, labels.y));
  nodes.push(svg("rect", { class: "strip", x: left, y: floor, width: right - left, height: MARGIN.bottom }));
  return nodes;
}

function drawFront(front, scales) {
  const path = front.map((item, at) => `${at ? `H${scales.x(item.size)}V` : `M${scales.x(item.size)} `}${scales.y(item.value)}`);
  return svg("path", { class: "front", d: `${path.join("")}H${scales.right}`, "data-front": front.map((item) => item.name).join(" ") });
}

// The stretches of the front that names should keep off.
function frontBoxes(front, scales) {
  return front.map((item, at) => {
    const y = scales.y(item.value);
    return [scales.x(item.size), y - 2, at + 1 < front.length ? scales.x(front[at + 1].size) : scales.right, y + 2];
  });
}

function drawPoint(item, scales) {
  const [x, y] = [scales.x(item.size), scales.y(item.value)];
  const bar = item.high > item.low ? svg("line", { class: "bar", y1: scales.y(item.high) - y, y2: scales.y(item.low) - y }) : null;
  const seeds = item.seeds.map((value) => svg("circle", { class: "seed", r: 2.5, cx: 11, cy: scales.y(value) - y }));
  return svg(
    "g",
    {
      class: `point g${item.colour}${item.fits ? "" : " unfit"}`, transform: `translate(${x} ${y})`, tabindex: 0,
      role: "button", "aria-label": item.spoken, "data-contender": item.name, "data-key": `point ${item.name}`,
    },
    svg("circle", { class: "hit", r: 15 }), bar, svg("path", { class: "shape", d: SHAPES[item.shape] }), ...seeds,
  );
}

// Names of the front come first; one that finds no room is left to the tooltip.
function drawNames(shown, scales, front, measure) {
  const items = [...front, ...shown.filter((item) => !front.includes(item))];
  const anchors = items.map((item) => [scales.x(item.size), scales.y(item.value)]);
  const sizes = items.map((item) => [measure(item.name), 15]);
  const frame = [scales.left, scales.ceiling, scales.right, scales.floor];
  const boxes = placeNames(anchors, sizes, frame, 11, frontBoxes(front, scales));
  return items.flatMap((item, at) => {
    const [[x, y], box] = [anchors[at], boxes[at]];
    if (!box) return [];
    const [nearX, nearY] = [Math.min(Math.max(x, box[0]), box[2]), Math.min(Math.max(y, box[1]), box[3])];
    const far = Math.hypot(nearX - x, nearY - y) > 22;
    return [
      far ? svg("line", { class: "leader", x1: x, y1: y, x2: nearX, y2: nearY }) : null,
      svg("text", { class: `name${item.fits ? "" : " unfit"}`, x: box[0], y: box[3] - 3.5, "aria-hidden": "true" }, item.name),
    ].filter((node) => node !== null);
  });
}

function drawBudget(budget, scales, measure) {
  const x = Math.min(Math.max(scales.x(budget), scales.left), scales.right);
  const text = shortBytes(budget);
  const width = measure(text) + 16;
  const middle = Math.min(Math.max(x, scales.left + width / 2), scales.right - width / 2);
  return [
    svg("rect", { class: "beyond", x, y: scales.ceiling, width: scales.right - x, height: scales.floor - scales.ceiling }),
    svg(
      "g",
      {
        class: "limit", tabindex: 0, role: "slider", "aria-label": "Budget", "aria-valuetext": text, "data-key": "budget",
        "aria-valuemin": Math.round(2 ** scales.low), "aria-valuemax": Math.round(2 ** scales.high), "aria-valuenow": budget,
      },
      svg("line", { x1: x, x2: x, y1: scales.ceiling - 2, y2: scales.floor }),
      svg("line", { class: "grip", x1: x, x2: x, y1: scales.ceiling - 20, y2: scales.floor }),
      svg("rect", { x: middle - width / 2, y: scales.ceiling - 23, width, height: 21, rx: 10.5 }),
      svg("text", { x: middle, y: scales.ceiling - 8.5 }, text),
    ),
  ];
}

// Draw everything anew; returns the scales, or null where there is nothing to show.
function drawChart(chart, items, options) {
  const width = Math.max(chart.parentElement.clientWidth, 280);
  const height = Math.round(Math.min(Math.max(width * 0.58, 400), 540));
  chart.setAttribute("viewBox", `0 0 ${width} ${height}`);
  chart.setAttribute("height", height);
  if (!items.length) {
    chart.replaceChildren(svg("text", { class: "empty", x: width / 2, y: height / 2 }, "Nothing shown has this number."));
    return null;
  }
  const scales = scalesFor(items, options.presets, width, height);
  const front = frontOf(items);
  const ordered = [...items].sort((one, two) => one.size - two.size || two.good - one.good);
  const presets = options.presets.filter((preset) => preset.bytes !== options.budget).map((preset) => scales.x(preset.bytes));
  chart.replaceChildren(
    ...drawFrame(scales, options.labels),
    ...presets.filter((x) => x >= scales.left && x <= scales.right).map((x) =>
      svg("line", { class: "preset", x1: x, x2: x, y1: scales.ceiling, y2: scales.floor })),
    ...(options.budget ? drawBudget(options.budget, scales, options.measure) : []),
    drawFront(front, scales),
    ...drawNames(ordered, scales, front, options.measure),
    ...ordered.map((item) => drawPoint(item, scales)),
  );
  return scales;
}
