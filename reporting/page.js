// Starts the page: data, charts, controls and keys.

const data = JSON.parse(document.getElementById("data").textContent);
const palette = Array.from({length: 256}, (_, i) =>
  [0, 2, 4].map(k => parseInt(data.palette.slice(6 * i + k, 6 * i + k + 2), 16)));
const at = name => document.getElementById(name);
const color = key => `var(--${key})`;

function options(select, pairs) {
  select.replaceChildren(...pairs.map(([value, text]) => el("option", {value}, text)));
}

function drawCurves() {
  for (const training of data.curves) {
    const chart = (name, title, settings = {}) => {
      const points = training.points.filter(point => name in point);
      return points.length < 1 ? null : lineChart({title, x: training.x, ...settings,
        series: [{name: title, color: `var(--curve-${name})`,
          points: points.map(point => [point.x, point[name]])}]});
    };
    at("curves").append(el("h3", {}, training.title), el("div", {class: "charts"},
      chart("loss", "training loss"),
      chart("lr", "learning rate", {low: 0}),
      chart("miou", "validation mIoU", {format: percent})));
  }
}

function drawSweep() {
  const rows = data.rows.filter(row => row.sweep.length);
  const titles = {miou: "mIoU", precision: "precision", recall: "recall"};
  for (const [name, title] of Object.entries(titles)) {
    at("sweep").append(lineChart({title, x: "alpha", format: percent, guide: data.alpha,
      series: rows.map(row => {
        const points = row.sweep.map(point => [point.alpha, point[name]]);
        const best = points.reduce((top, point, i) => point[1] > points[top][1] ? i : top, 0);
        return {name: row.title, color: color(row.key), points, mark: best};
      })}));
  }
}

function drawClasses(explorer) {
  const rows = data.rows.filter(row => row.class_iou)
    .map(row => ({...row, color: color(row.key)}));
  const hidden = new Set();
  options(at("class-by"), rows.map(row => [row.key, row.title]));
  at("class-by").value = rows[rows.length - 1].key;
  const draw = () => {
    const row = rows.find(row => row.key === at("class-by").value);
    const cam = rows.find(row => row.key === "cam");
    at("class-cards").replaceChildren(...classCards(data.labels,
      rows.filter(row => !hidden.has(row.key)),
      orderedLabels(data.labels, at("class-order").value, row, cam), label => {
        if (!explorer) return;
        explorer.set({label: label || null, order: "worst", by: row.key});
        at("images").scrollIntoView();
        at("thumbs").querySelector("button")?.focus({preventScroll: true});
      }));
  };
  at("class-key").append(...rows.map(row => el("button", {type: "button", "aria-pressed": "true",
    onclick: event => {
      hidden[hidden.has(row.key) ? "delete" : "add"](row.key);
      event.currentTarget.setAttribute("aria-pressed", String(!hidden.has(row.key)));
      draw();
    }}, el("i", {class: "dot", style: {background: row.color}}), row.title)));
  if (!rows.some(row => row.key === "cam")) at("class-order").querySelector("[value=gain]").remove();
  ["class-by", "class-order"].forEach(name => at(name).addEventListener("change", draw));
  draw();
}

/** Selects, sliders and buttons of the explorer. */
function connect(explorer) {
  const has = test => data.images.some(test);
  const possible = {worst: explorer.measured.length, best: explorer.measured.length,
    gain: has(image => image.layers.cam?.miou !== undefined &&
      image.layers.drs?.miou !== undefined), doubt: has(image => image.doubt !== null)};
  for (const [value, there] of Object.entries(possible)) {
    if (!there) at("order").querySelector(`[value=${value}]`).remove();
  }
  options(at("by"), explorer.measured.map(layer => [layer.key, layer.result ?? layer.title]));
  at("by-field").hidden = explorer.measured.length < 2;
  const present = new Set(data.images.flatMap(image => image.labels));
  const named = [...present].sort((a, b) => a - b)
    .map(label => [label, explorer.label(label)]);
  options(at("label"), [["", "all classes"], ...named]);
  options(at("list"), [["", "all lists"], ...data.lists.map(name => [name, name])]);
  at("list-field").hidden = data.lists.length < 2;
  at("alpha-field").hidden = !data.layers.some(layer => layer.kind === "maps");
  for (const name of ["mode-field", "map-keys"]) at(name).hidden = at("alpha-field").hidden;
  for (const name of ["order", "by", "list", "base"]) {
    at(name).addEventListener("change", () => explorer.set({[name]: at(name).value || null}));
  }
  at("label").addEventListener("change", () => explorer.set({
    label: at("label").value ? +at("label").value : null}));
  for (const name of ["alpha", "opacity"]) {
    at(name).addEventListener("input", () => explorer.set({[name]: +at(name).value}));
  }
  document.querySelectorAll("[data-set]").forEach(button => button.addEventListener("click", () =>
    explorer.set({[button.dataset.set]: button.dataset.value})));
  at("alpha-reset").addEventListener("click", () => explorer.set({alpha: data.alpha}));
  at("previous").addEventListener("click", () => explorer.show(explorer.state.index - 1));
  at("next").addEventListener("click", () => explorer.show(explorer.state.index + 1));
  document.addEventListener("keydown", event => key(explorer, event));
  explorer.sync();
}

/** Arrows: images, with Shift the pixel looked at; digits: layers; letters: ways to look. */
function key(explorer, event) {
  if (event.ctrlKey || event.metaKey || event.altKey || !explorer.visible.length) return;
  if (event.target.matches("select, input, textarea")) return;
  const {state} = explorer, [height, width] = explorer.visible[state.index].size;
  const arrow = {ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1]};
  const move = arrow[event.key];
  if (move && event.shiftKey) {
    const [x, y] = state.at ?? [width >> 1, height >> 1];
    const step = Math.max(1, Math.round(width / 80));
    explorer.look([Math.min(width - 1, Math.max(0, x + step * move[0])),
      Math.min(height - 1, Math.max(0, y + step * move[1]))]);
  } else if (move && move[0]) {
    explorer.show(state.index + move[0]);
  } else if (/^[0-9]$/.test(event.key) && explorer.there[+event.key]) {
    explorer.set({view: "over", top: explorer.there[+event.key].key});
  } else if (event.key === "s") {
    explorer.set({view: state.view === "side" ? "over" : "side"});
  } else if (event.key === "h") {
    explorer.set({mode: state.mode === "heat" ? "labels" : "heat"});
  } else if (event.key === "+" || event.key === "-") {
    const alpha = state.alpha + (event.key === "+" ? 0.01 : -0.01);
    explorer.set({alpha: Math.min(1, Math.max(0, +alpha.toFixed(2)))});
  } else if (event.key === "Escape") {
    explorer.set({view: "side", only: null});
  } else {
    return;
  }
  event.preventDefault();
}

const explorer = data.images.length ? new Explorer(data, palette) : null;
if (explorer) connect(explorer);
if (at("curves")) drawCurves();
if (at("sweep")) drawSweep();
if (at("class-cards")) drawClasses(explorer);
document.querySelectorAll("[data-label]").forEach(button => button.addEventListener("click", () => {
  explorer?.set({label: +button.dataset.label});
  at("images").scrollIntoView();
}));
document.body.dataset.ready = "yes";
