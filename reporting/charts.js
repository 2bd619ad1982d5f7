// Charts: lines over a common x, with axes, hover and keys; bars of the classes.

const SVG = "http://www.w3.org/2000/svg";

/** An HTML element; strings among the children become text, never markup. */
function el(tag, attributes = {}, ...children) {
  return fill(document.createElement(tag), attributes, children);
}

function svg(tag, attributes = {}, ...children) {
  return fill(document.createElementNS(SVG, tag), attributes, children);
}

function fill(node, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else if (name === "style") Object.entries(value).forEach(([k, v]) => node.style.setProperty(k, v));
    else if (value !== null && value !== false) node.setAttribute(name, value === true ? "" : value);
  }
  node.append(...children.filter(child => child !== null && child !== undefined));
  return node;
}

const percent = value => (100 * value).toFixed(1);
const short = value => value === 0 ? "0" : Math.abs(value) >= 1e-4 && Math.abs(value) < 1e4
  ? String(+value.toPrecision(3)) : value.toExponential(1).replace(".0e", "e").replace("-", "−").replace("+", "");

/** About `count` round numbers that span low to high. */
function ticks(low, high, count) {
  const raw = (high - low) / count, power = 10 ** Math.floor(Math.log10(raw));
  const step = [1, 2, 5, 10].find(factor => factor * power >= raw * 0.999) * power;
  const found = [];
  for (let i = Math.ceil(low / step - 1e-9); i * step <= high + step * 1e-9; i++) {
    found.push(+(i * step).toPrecision(12));
  }
  return found;
}

/** A line chart as a <figure>.
 *  series: [{name, color, points: [[x, y], ...], mark: index of a point to mark}]. */
function lineChart({title, x, series, format = short, low = null, guide = null}) {
  const W = 380, H = 230, left = 46, right = 14, top = 12, bottom = 36;
  const points = series.flatMap(line => line.points);
  const xs = [...new Set(points.map(point => point[0]))].sort((a, b) => a - b);
  let [x0, x1] = [xs[0], xs[xs.length - 1]];
  if (x0 === x1) [x0, x1] = [x0 - 1, x1 + 1];
  let y0 = low ?? Math.min(...points.map(point => point[1]));
  let y1 = Math.max(...points.map(point => point[1]));
  if (y0 === y1) [y0, y1] = [y0 - (Math.abs(y0) || 1) / 2, y1 + (Math.abs(y1) || 1) / 2];
  const yTicks = ticks(y0, y1, 4);
  [y0, y1] = [Math.min(y0, yTicks[0]), Math.max(y1, yTicks[yTicks.length - 1])];
  const pad = low === y0 ? 0 : (y1 - y0) * 0.04;
  const px = value => left + (value - x0) / (x1 - x0) * (W - left - right);
  const py = value => H - bottom - (value - y0 + pad) / (y1 - y0 + 2 * pad) * (H - top - bottom);
  const whole = xs.every(Number.isInteger);

  const root = svg("svg", {viewBox: `0 0 ${W} ${H}`, role: "img", "aria-label":
    `${title}: ${series.map(line => `${line.name} from ${format(line.points[0][1])} to ` +
      format(line.points[line.points.length - 1][1])).join("; ")}`});
  for (const value of yTicks) {
    root.append(svg("line", {class: "grid", x1: left, x2: W - right, y1: py(value), y2: py(value)}),
      svg("text", {class: "tick", x: left - 7, y: py(value) + 4, "text-anchor": "end"},
        format(value).replace(/\.0$/, "")));
  }
  for (const value of ticks(x0, x1, 6).filter(value => !whole || Number.isInteger(value))) {
    root.append(svg("text", {class: "tick", x: px(value), y: H - bottom + 17,
      "text-anchor": "middle"}, short(value)));
  }
  root.append(svg("text", {class: "tick", x: (left + W - right) / 2, y: H - 3,
    "text-anchor": "middle"}, x));
  if (guide) {
    root.append(svg("line", {class: "guide", x1: px(guide), x2: px(guide), y1: top,
      y2: H - bottom}));
  }
  for (const line of series) {
    const path = line.points.map(([a, b], i) => `${i ? "L" : "M"}${px(a)} ${py(b)}`).join("");
    root.append(svg("path", {class: "line", d: path, style: {stroke: line.color}}));
    if (line.points.length === 1 || line.mark !== undefined) {
      const [a, b] = line.points[line.mark ?? 0];
      root.append(svg("circle", {class: "mark", cx: px(a), cy: py(b), r: 4.5,
        style: {fill: line.color}}));
    }
  }
  const cursor = svg("line", {class: "cursor", y1: top, y2: H - bottom, visibility: "hidden"});
  root.append(cursor);

  const values = el("p", {class: "values", "aria-live": "polite"});
  let place = null;
  function look(next) {
    place = next;
    cursor.setAttribute("visibility", place === null ? "hidden" : "visible");
    const at = place === null ? null : xs[place];
    if (at !== null) ["x1", "x2"].forEach(name => cursor.setAttribute(name, px(at)));
    values.replaceChildren(...(at === null ? [] : [el("b", {}, `${x} ${short(at)}`)]),
      ...series.map(line => {
        const index = at === null ? line.mark ?? line.points.length - 1
          : line.points.findIndex(point => point[0] === at);
        const value = index < 0 ? "–" : format(line.points[index][1]);
        const note = at === null && line.mark !== undefined
          ? ` best ${value} at ${short(line.points[index][0])}` : ` ${value}`;
        return el("span", {}, el("i", {class: "dot", style: {background: line.color}}),
          line.name + note);
      }));
  }
  root.addEventListener("pointermove", event => {
    const box = root.getBoundingClientRect();
    const at = x0 + ((event.clientX - box.left) / box.width * W - left) /
      (W - left - right) * (x1 - x0);
    look(xs.reduce((best, value, i) =>
      Math.abs(value - at) < Math.abs(xs[best] - at) ? i : best, 0));
  });
  root.addEventListener("pointerleave", () => look(null));
  look(null);
  return el("figure", {class: "chart", tabindex: 0, onkeydown: event => {
    const step = {ArrowLeft: -1, ArrowRight: 1}[event.key];
    if (event.key === "Escape") look(null);
    if (!step) return;
    event.stopPropagation();
    event.preventDefault();
    look(Math.min(xs.length - 1, Math.max(0, place === null
      ? (step > 0 ? 0 : xs.length - 1) : place + step)));
  }, onblur: () => look(null)}, el("figcaption", {}, title), root, values);
}

/** Cards of the classes, each with a bar for every result, in `order`.
 *  rows: results with `class_iou`; open: called with the label whose name is chosen. */
function classCards(labels, rows, order, open) {
  return order.map(label => el("div", {class: "class-card"},
    el("button", {class: "link", type: "button", title: `show images of ${labels[label]}`,
      onclick: () => open(label)}, labels[label]),
    ...rows.map(row => {
      const iou = row.class_iou[label];
      const text = iou === null ? "not in the masks" : percent(iou);
      return el("div", {class: "bar", title: `${row.title}: ${text}`},
        el("span", {style: {width: `calc(${iou ?? 0} * (100% - 2.6rem))`, background: row.color}}),
        el("b", {"aria-label": `${row.title} ${text}`}, iou === null ? "–" : percent(iou)));
    })));
}

/** Labels ordered by "data", "name", "worst", "best" or "gain" of one result over another. */
function orderedLabels(labels, how, row, baseline) {
  const value = label => {
    const own = row.class_iou[label], other = baseline ? baseline.class_iou[label] : 0;
    return own === null || other === null ? null : how === "gain" ? own - other : own;
  };
  const order = labels.map((_, label) => label);
  if (how === "name") order.sort((a, b) => labels[a].localeCompare(labels[b]));
  if (["worst", "best", "gain"].includes(how)) {
    const sign = how === "worst" ? 1 : -1;
    order.sort((a, b) => (value(a) === null) - (value(b) === null) ||
      sign * (value(a) - value(b)));
  }
  return order;
}
