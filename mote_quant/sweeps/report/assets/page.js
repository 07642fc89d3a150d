// What the reader has chosen, kept in the address so that a view can be sent: #size=&metric=&budget=&hide=&point=

const view = JSON.parse(document.getElementById("view").textContent);
const byId = (id) => document.getElementById(id);
const contenderOf = new Map(view.contenders.map((one) => [one.name, one]));
const groupOf = new Map(view.groups.map((group) => [group.name, group]));
const metricOf = new Map(view.metrics.map((metric) => [metric.key, metric]));
const initial = () => ({
  size: view.match,
  metric: view.metrics[0].key,
  budget: view.budgets.length ? view.budgets[0].bytes : null,
  hidden: new Set(),
  point: null,
});
let state = initial();
let scales = null;

const pen = document.createElement("canvas").getContext("2d");
pen.font = `12px ${getComputedStyle(document.body).fontFamily}`;
const measure = (text) => pen.measureText(text).width + 2;

// --- words for numbers

const grouped = (value, digits) => value.toLocaleString("en", { minimumFractionDigits: digits, maximumFractionDigits: digits });
function number(metric, value) {
  return metric.unit === "bytes" ? humanBytes(value) : grouped(metric.scale * value, metric.digits);
}
const unitOf = (metric) => (metric.unit && metric.unit !== "bytes" ? ` ${metric.unit}` : "");
function around(metric, found) {
  return number(metric, found.mean) + (found.sd ? ` ± ${number(metric, found.sd)}` : "") + unitOf(metric);
}
const counted = (found) => {
  const seeds = Object.keys(found.seeds).length;
  return seeds === 1 ? "one seed" : `${seeds} seeds`;
};

// --- the state and the address

function readAddress() {
  const next = initial();
  for (const part of location.hash.slice(1).split("&").filter(Boolean)) {
    const at = part.indexOf("=");
    const key = part.slice(0, at);
    let values;
    try {
      values = part.slice(at + 1).split(",").map(decodeURIComponent);
    } catch {
      continue; // A broken % sequence: somebody mangled the link.
    }
    if (key === "size" && view.accountings.includes(values[0])) next.size = values[0];
    if (key === "metric" && metricOf.has(values[0])) next.metric = values[0];
    if (key === "budget") next.budget = parseBytes(values[0]);
    if (key === "hide") next.hidden = new Set(values.flatMap(named));
    if (key === "point" && contenderOf.has(values[0])) next.point = values[0];
  }
  return next;
}

// A contender by its name, all of a group or family by theirs.
function named(name) {
  if (contenderOf.has(name)) return [name];
  return view.contenders.filter((one) => one.group === name || one.family === name).map((one) => one.name);
}

function writeAddress() {
  const first = initial();
  const parts = [];
  if (state.size !== first.size) parts.push(`size=${state.size}`);
  if (state.metric !== first.metric) parts.push(`metric=${encodeURIComponent(state.metric)}`);
  if (state.budget !== first.budget) parts.push(`budget=${state.budget === null ? "none" : state.budget}`);
  if (state.hidden.size) parts.push(`hide=${[...state.hidden].map(encodeURIComponent).join(",")}`);
  if (state.point) parts.push(`point=${encodeURIComponent(state.point)}`);
  const address = location.pathname + location.search + (parts.length ? `#${parts.join("&")}` : "");
  try {
    history.replaceState(null, "", address);
  } catch {
    // Some viewers of local files forbid it; the page works without.
  }
}

function choose(change) {
  state = { ...state, ...change };
  writeAddress();
  show();
}

// --- what is on the chart

function itemsShown() {
  const metric = metricOf.get(state.metric);
  return view.contenders
    .filter((one) => !state.hidden.has(one.name) && one.metrics[state.metric])
    .map((one) => {
      const found = one.metrics[state.metric];
      const size = one.sizes[state.size];
      const group = groupOf.get(one.group);
      const value = metric.scale * found.mean;
      const spread = metric.scale * (found.sd || 0);
      return {
        name: one.name, group: one.group, colour: group.colour, shape: group.shape, size, value, found,
        good: metric.higher ? found.mean : -found.mean, low: value - spread, high: value + spread,
        seeds: Object.values(found.seeds).map((one) => metric.scale * one),
        fits: state.budget === null || size <= state.budget,
        spoken: `${one.name}, ${one.group}: ${metric.label} ${around(metric, found)}, ${counted(found)}, ${humanBytes(size)} ${state.size}`,
      };
    });
}

function show() {
  const metric = metricOf.get(state.metric);
  const focused = document.activeElement && document.activeElement.dataset ? document.activeElement.dataset.key : null;
  const items = itemsShown();
  scales = drawChart(byId("chart"), items, {
    budget: state.budget, presets: view.budgets, measure,
    labels: {
      x: `feed-forward experts, ${state.size} bytes`,
      y: `${metric.label}${metric.unit && metric.unit !== "bytes" ? ` (${metric.unit})` : ""}, ${metric.higher ? "higher" : "lower"} is better`,
    },
  });
  if (focused) document.querySelector(`[data-key="${CSS.escape(focused)}"]`)?.focus();
  showFits(items, metric);
  showControls();
}

// The best of each group that fits, of what is shown.
function showFits(items, metric) {
  const fitting = items.filter((item) => item.fits).sort((one, two) => two.good - one.good || one.size - two.size);
  const groups = view.groups.filter((group) => items.some((item) => item.group === group.name));
  const limit = state.budget === null ? "of any size" : `in ${shortBytes(state.budget)} (${state.size})`;
  const rows = groups.map((group) => {
    const best = fitting.find((item) => item.group === group.name);
    const name = html("td", {}, html("span", { class: "with-swatch" }, swatch(group), group.name));
    if (!best) return html("tr", { "data-group": group.name }, name, html("td", { class: "nothing", colspan: 3 }, "nothing fits"));
    return html("tr", { "data-group": group.name, "data-best": best.name }, name, html("td", {}, opener(best.name)),
      html("td", { class: "n" }, around(metric, best.found)), html("td", { class: "n" }, humanBytes(best.size)));
  });
  const head = ["group", "best contender", metric.label, `${state.size} bytes`].map((text, at) =>
    html("th", { scope: "col", class: at > 1 ? "n" : null }, text));
  byId("fits").replaceChildren(html("div", { class: "scroll" },
    html("table", {}, html("caption", {}, `Best of each group ${limit}`), html("thead", {}, html("tr", {}, ...head)), html("tbody", {}, ...rows))));
}

function swatch(group) {
  return svg("svg", { class: `swatch g${group.colour}`, viewBox: "-8 -8 16 16", "aria-hidden": "true" }, svg("path", { d: SHAPES[group.shape] }));
}

function opener(name) {
  const button = html("button", { class: "open", type: "button" }, name);
  button.addEventListener("click", () => openPanel(name));
  return button;
}

// --- controls and legend

function buildControls() {
  byId("sizes").append(...view.accountings.map((name) => {
    const input = html("input", { type: "radio", name: "size", value: name });
    input.addEventListener("change", () => choose({ size: name }));
    return html("label", {}, input, name);
  }));
  byId("metric").append(...view.metrics.map((metric) => html("option", { value: metric.key }, metric.label)));
  byId("metric").addEventListener("change", (event) => choose({ metric: event.target.value }));
  byId("budget").addEventListener("input", (event) => typeBudget(event.target.value));
  byId("controls").addEventListener("submit", (event) => event.preventDefault());
  const choices = [...view.budgets, ...(view.budgets.length ? [{ text: "none", bytes: null }] : [])];
  byId("presets").append(...choices.map((choice) => {
    const button = html("button", { type: "button", "data-bytes": String(choice.bytes) }, choice.text);
    button.addEventListener("click", () => choose({ budget: choice.bytes }));
    return button;
  }));
  byId("legend").append(...view.groups.map(legendOf));
}

function typeBudget(text) {
  const bytes = parseBytes(text);
  const wrong = text.trim() !== "" && bytes === null;
  byId("budget").setAttribute("aria-invalid", wrong);
  byId("budget-help").textContent = wrong ? "Write a size such as 3.4GB or 512 KiB." : "";
  if (!wrong) choose({ budget: bytes });
}

function legendOf(group) {
  const members = view.contenders.filter((one) => one.group === group.name);
  const whole = html("input", { type: "checkbox", "data-group": group.name });
  whole.addEventListener("change", () => toggle(members.map((one) => one.name), whole.checked));
  return html("fieldset", {},
    html("label", { class: "group" }, whole, swatch(group), html("span", {}, group.name)),
    ...members.map((one) => {
      const box = html("input", { type: "checkbox", "data-name": one.name });
      box.addEventListener("change", () => toggle([one.name], box.checked));
      const line = html("label", { class: "one" }, box, html("span", {}, one.name));
      for (const [event, hot] of [["pointerenter", true], ["pointerleave", false]]) {
        line.addEventListener(event, () => pointOf(one.name)?.classList.toggle("hot", hot));
      }
      return line;
    }));
}

const pointOf = (name) => document.querySelector(`.point[data-contender="${CSS.escape(name)}"]`);

function toggle(names, shown) {
  const hidden = new Set(state.hidden);
  for (const name of names) shown ? hidden.delete(name) : hidden.add(name);
  choose({ hidden });
}

function showControls() {
  for (const input of byId("sizes").querySelectorAll("input")) input.checked = input.value === state.size;
  byId("metric").value = state.metric;
  const field = byId("budget");
  if (document.activeElement !== field) {
    field.value = state.budget === null ? "" : shortBytes(state.budget);
    field.setAttribute("aria-invalid", "false");
    byId("budget-help").textContent = "";
  }
  for (const button of byId("presets").children) button.setAttribute("aria-pressed", button.dataset.bytes === String(state.budget));
  for (const box of byId("legend").querySelectorAll("[data-name]")) box.checked = !state.hidden.has(box.dataset.name);
  for (const box of byId("legend").querySelectorAll("[data-group]")) {
    const members = view.contenders.filter((one) => one.group === box.dataset.group);
    const shown = members.filter((one) => !state.hidden.has(one.name)).length;
    box.checked = shown > 0;
    box.indeterminate = shown > 0 && shown < members.length;
  }
}

// --- the pointer and the keyboard on the chart

function watchChart() {
  const chart = byId("chart");
  let dragging = false;
  const drag = (event) => {
    const box = chart.getBoundingClientRect();
    choose({ budget: scales.bytesAt((event.clientX - box.left) * (chart.viewBox.baseVal.width / box.width)) });
  };
  chart.addEventListener("pointerdown", (event) => {
    if (!scales || !event.target.closest(".limit, .strip")) return;
    dragging = true;
    chart.setPointerCapture(event.pointerId);
    event.preventDefault();
    drag(event);
  });
  chart.addEventListener("pointermove", (event) => dragging && drag(event));
  for (const end of ["pointerup", "pointercancel"]) chart.addEventListener(end, () => (dragging = false));
  chart.addEventListener("click", (event) => {
    const point = event.target.closest(".point");
    if (point) openPanel(point.dataset.contender);
  });
  chart.addEventListener("keydown", onKey);
  for (const event of ["pointerover", "focusin"]) chart.addEventListener(event, (over) => showTip(over.target.closest(".point")));
  for (const event of ["pointerleave", "focusout"]) chart.addEventListener(event, () => showTip(null));
}

const STEPS = { ArrowLeft: -0.05, ArrowDown: -0.05, ArrowRight: 0.05, ArrowUp: 0.05, PageDown: -0.5, PageUp: 0.5 };

function onKey(event) {
  const point = event.target.closest(".point");
  if (point && (event.key === "Enter" || event.key === " ")) {
    event.preventDefault();
    openPanel(point.dataset.contender);
  }
  if (event.target.closest(".limit") && event.key in STEPS) {
    event.preventDefault();
    choose({ budget: Math.max(1, Math.round(state.budget * 2 ** STEPS[event.key])) });
  }
  if (event.key === "Escape") showTip(null);
}

function showTip(point) {
  const tip = byId("tip");
  tip.hidden = !point;
  if (!point) return;
  const one = contenderOf.get(point.dataset.contender);
  const metric = metricOf.get(state.metric);
  const found = one.metrics[state.metric];
  const seeds = Object.values(found.seeds).map((value) => number(metric, value));
  tip.replaceChildren(
    html("b", {}, one.name), html("span", {}, one.group), html("span", { class: "big" }, around(metric, found)),
    html("span", {}, `${counted(found)}: ${seeds.join(" · ")}`),
    ...view.accountings.map((name) => html("span", {}, `${shortBytes(one.sizes[name])} ${name}`)),
  );
  const [plot, at] = [byId("plot").getBoundingClientRect(), point.querySelector(".shape").getBoundingClientRect()];
  const [right, left] = [at.right - plot.left + 18, at.left - plot.left - tip.offsetWidth - 18];
  const top = at.top - plot.top + at.height / 2 - tip.offsetHeight / 2;
  tip.style.left = `${right + tip.offsetWidth < plot.width || left < 0 ? Math.min(right, plot.width - tip.offsetWidth) : left}px`;
  tip.style.top = `${Math.min(Math.max(top, 6), plot.height - tip.offsetHeight - 6)}px`;
}

// --- one contender, with its recipe

function openPanel(name) {
  const one = contenderOf.get(name);
  const panel = byId("panel");
  const close = html("button", { class: "plain", type: "button" }, "Close");
  close.addEventListener("click", () => panel.close());
  const title = html("h2", { id: "panel-name" }, name);
  panel.replaceChildren(
    html("header", {}, html("div", {}, title, html("p", { class: "with-swatch" }, swatch(groupOf.get(one.group)), one.group)), close),
    ...recipeOf(one), html("h3", {}, "Size"), sizesOf(one), html("h3", {}, "Numbers"), numbersOf(one),
  );
  state = { ...state, point: name };
  writeAddress();
  showTip(null);
  if (!panel.open) panel.showModal();
  panel.scrollTop = 0;
}

function sizesOf(one) {
  const rows = view.accountings.map((name) => [`feed-forward experts, ${name}`, one.sizes[name]]);
  rows.push(...Object.entries(one.whole).filter(([, size]) => size).map(([name, size]) => [`whole model, ${name}`, size]));
  return grid(["", "", "bytes"], rows.map(([name, size]) => [name, humanBytes(size), size.toLocaleString("en")]));
}

function numbersOf(one) {
  const seeds = one.recipes.map((recipe) => recipe.seed);
  const rows = view.metrics.filter((metric) => one.metrics[metric.key]).map((metric) => {
    const found = one.metrics[metric.key];
    const each = seeds.map((seed) => (seed in found.seeds ? number(metric, found.seeds[seed]) : ""));
    return [metric.label, around(metric, found), ...each];
  });
  const rates = one.rates.filter((rate) => rate !== null && rate !== undefined);
  if (rates.length) rows.push(["learning rate", rates.join(", "), ...seeds.map(() => "")]);
  return grid(["", "mean ± sd", ...seeds.map((seed) => `seed ${seed}`)], rows);
}

function grid(header, rows) {
  const side = (at) => ({ class: at ? "n" : null });
  return html("div", { class: "scroll", tabindex: 0 }, html("table", {},
    html("thead", {}, html("tr", {}, ...header.map((text, at) => html("th", { scope: "col", ...side(at) }, text)))),
    html("tbody", {}, ...rows.map((row) => html("tr", {}, ...row.map((text, at) => html("td", side(at), text)))))));
}

// Recipes of seeds differ in little: the first one's, and the others to choose from.
function recipeOf(one) {
  const code = html("code", {});
  const text = html("pre", { tabindex: 0, "aria-label": "Recipe" }, code);
  const pick = html("select", { class: "plain", "aria-label": "Seed" }, ...one.recipes.map((recipe, at) => html("option", { value: at }, `seed ${recipe.seed}`)));
  const turn = () => (code.textContent = one.recipes[Number(pick.value)].text || "(no recipe was recorded)");
  pick.addEventListener("change", turn);
  turn();
  const copy = html("button", { class: "plain", type: "button" }, "Copy");
  copy.addEventListener("click", async () => {
    copy.textContent = (await copied(code)) ? "Copied" : "Press Ctrl+C";
    setTimeout(() => (copy.textContent = "Copy"), 1600);
  });
  const choice = one.recipes.length > 1 ? pick : null;
  return [html("div", { class: "recipe-bar" }, html("h3", {}, "Recipe"), html("div", {}, choice, copy)), text];
}

// Local files have no clipboard in some browsers: then the text is selected, and the old command tried.
async function copied(code) {
  try {
    await navigator.clipboard.writeText(code.textContent);
    return true;
  } catch {
    getSelection().selectAllChildren(code);
    return document.execCommand("copy");
  }
}

// --- tables

function makeSortable(table) {
  [...table.tHead.rows[0].cells].forEach((head, column) => {
    const button = html("button", { type: "button" }, head.textContent);
    button.addEventListener("click", () => sortBy(table, head, column));
    head.replaceChildren(button);
  });
}

// Up, then down; rows with nothing in the column stay at the end.
function sortBy(table, head, column) {
  const turn = head.getAttribute("aria-sort") === "ascending" ? -1 : 1;
  const key = (row) => row.cells[column].dataset.v;
  const numeric = head.classList.contains("n");
  const rows = [...table.tBodies[0].rows].sort((one, two) => {
    const [a, b] = [key(one), key(two)];
    if (a === "" || b === "") return (a === "") - (b === "");
    return turn * (numeric ? Number(a) - Number(b) : a.localeCompare(b, "en", { numeric: true }));
  });
  for (const other of table.tHead.rows[0].cells) other.removeAttribute("aria-sort");
  head.setAttribute("aria-sort", turn > 0 ? "ascending" : "descending");
  table.tBodies[0].append(...rows);
}

function nameOpeners(table) {
  for (const row of table.tBodies[0].rows) {
    const name = row.cells[0].textContent;
    if (contenderOf.has(name)) row.cells[0].replaceChildren(opener(name));
  }
}

// --- begin

function start() {
  for (const table of document.querySelectorAll("table[data-table]")) makeSortable(table);
  addEventListener("beforeprint", () => document.querySelectorAll("details").forEach((folded) => (folded.open = true)));
  for (const table of document.querySelectorAll("table[data-table=Contenders]")) nameOpeners(table);
  if (!view.contenders.length) return;
  byId("explorer").hidden = false;
  buildControls();
  watchChart();
  byId("panel").addEventListener("close", () => {
    state = { ...state, point: null };
    writeAddress();
  });
  byId("panel").addEventListener("click", (event) => event.target === byId("panel") && byId("panel").close());
  const arrive = () => {
    state = readAddress();
    show();
    if (state.point) openPanel(state.point);
    else if (byId("panel").open) byId("panel").close();
  };
  addEventListener("hashchange", arrive);
  new ResizeObserver(() => show()).observe(byId("plot"));
  arrive();
}

start();
