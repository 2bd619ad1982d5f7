// The explorer: which image, which layers, how they are drawn, and what the pointer is on.

const KEPT = 12; // decoded images kept for going back

/** Bytes of a grey PNG given as data URI: {data, width, height}. */
async function decode(uri) {
  const image = new Image();
  image.src = uri;
  await image.decode();
  const canvas = el("canvas", {width: image.naturalWidth, height: image.naturalHeight});
  const context = canvas.getContext("2d", {willReadFrequently: true});
  context.drawImage(image, 0, 0);
  const pixels = context.getImageData(0, 0, canvas.width, canvas.height).data;
  const bytes = new Uint8Array(pixels.length / 4);
  for (let i = 0; i < bytes.length; i++) bytes[i] = pixels[4 * i];
  return bytes;
}

class Explorer {
  constructor(data, palette) {
    Object.assign(this, {data, palette, decoded: new Map(), drawing: 0});
    this.state = {index: 0, order: "list", by: null, label: null, list: null, alpha: data.alpha,
      view: "side", mode: "labels", only: null, opacity: 0.75, top: null, base: "image", at: null};
    this.at = name => document.getElementById(name);
    this.measured = data.layers.filter(layer => layer.key !== "mask" &&
      data.images.some(image => image.layers[layer.key]?.miou !== undefined));
    const count = layer => data.images.filter(image => image.layers[layer.key]?.miou !== undefined);
    this.state.by = this.measured.reduce((best, layer) => // the last of those on most images
      best && count(best).length > count(layer).length ? best : layer, null)?.key ?? null;
    if (!this.measured.length && data.images.some(image => image.doubt !== null)) {
      this.state.order = "doubt";
    }
    this.state.top = data.layers.find(layer => layer.key !== "image")?.key ?? "image";
    this.arrange();
  }

  // ---- which images, in which order

  /** The score by which an image is ordered: of the class filtered by, if one is. */
  score(image, key = this.state.by) {
    const layer = image.layers[key];
    return (this.state.label === null ? layer?.miou : layer?.iou?.[this.state.label]) ?? null;
  }

  rank(image) {
    const gain = [this.score(image, "drs"), this.score(image, "cam")];
    switch (this.state.order) {
      case "worst": return this.score(image);
      case "best": return this.score(image) === null ? null : -this.score(image);
      case "gain": return gain.includes(null) ? null : gain[1] - gain[0];
      case "doubt": return image.doubt === null ? null : -image.doubt;
      default: return 0;
    }
  }

  /** Filter and order the images; stay at the one that is shown where it remains. */
  arrange(first = false) {
    const current = this.visible?.[this.state.index];
    this.visible = this.data.images.filter(image =>
      (this.state.label === null || image.labels.includes(this.state.label)) &&
      (this.state.list === null || image.list === this.state.list));
    const ranks = new Map(this.visible.map(image => [image, this.rank(image)]));
    this.visible.sort((a, b) => (ranks.get(a) === null) - (ranks.get(b) === null) ||
      ranks.get(a) - ranks.get(b));
    this.state.index = first ? 0 : Math.max(0, this.visible.indexOf(current));
    this.thumbs();
    this.show(this.state.index);
  }

  thumbs() {
    this.at("count").textContent =
      `${this.visible.length} of ${this.data.images.length} images`;
    this.at("thumbs").replaceChildren(...this.visible.map((image, i) => {
      const score = this.state.order === "doubt" ? image.doubt : this.score(image);
      const gain = this.state.order === "gain" && this.rank(image) !== null
        ? -this.rank(image) : null;
      const text = gain !== null ? (gain >= 0 ? "+" : "−") + percent(Math.abs(gain))
        : score === null || score === undefined ? "" : percent(score);
      return el("li", {}, el("button", {type: "button", "aria-label": `${image.id} ${text}`,
        onclick: () => this.show(i)},
      el("img", {src: image.picture, alt: "", loading: "lazy", decoding: "async"}),
      text ? el("span", {}, text) : null));
    }));
  }

  async show(index) {
    const found = this.visible.length > 0;
    this.at("stage").hidden = !found;
    this.at("none").hidden = found;
    if (!found) return;
    this.state.index = Math.min(Math.max(index, 0), this.visible.length - 1);
    this.state.at = null;
    const image = this.visible[this.state.index];
    this.at("thumbs").querySelectorAll("button").forEach((button, i) => {
      button.setAttribute("aria-current", String(i === this.state.index));
      if (i === this.state.index) {
        const strip = this.at("thumbs"), box = button.parentElement;
        strip.scrollTo({top: box.offsetTop - strip.clientHeight / 2 + box.clientHeight / 2,
          left: box.offsetLeft - strip.clientWidth / 2 + box.clientWidth / 2});
      }
    });
    this.at("name").textContent = image.id;
    this.at("place").textContent = `${this.state.index + 1} of ${this.visible.length}` +
      (this.data.lists.length > 1 ? ` · ${image.list}` : "");
    await this.draw();
  }

  /** The arrays of an image: {salient, KEY: bytes}. */
  async load(image) {
    if (!this.decoded.has(image)) {
      const sources = Object.entries(image.layers).map(([key, layer]) => [key, layer.numbers]);
      const found = [["salient", image.salient], ...sources].filter(([, uri]) => uri);
      const bytes = await Promise.all(found.map(async ([key, uri]) => [key, await decode(uri)]));
      this.decoded.set(image, Object.fromEntries(bytes));
      if (this.decoded.size > KEPT) this.decoded.delete(this.decoded.keys().next().value);
    }
    return this.decoded.get(image);
  }

  // ---- drawing

  /** Draw the panels anew; `document.body.dataset.drawn` counts the drawings that are complete. */
  async draw() {
    const drawing = ++this.drawing;
    const image = this.visible[this.state.index], arrays = await this.load(image);
    if (drawing !== this.drawing) return; // another image or setting came in between
    const there = this.data.layers.filter(layer => layer.key === "image" ||
      image.layers[layer.source ?? layer.key]);
    this.there = there;
    if (!there.some(layer => layer.key === this.state.top)) {
      this.state.top = there[there.length - 1].key;
    }
    if (!there.some(layer => layer.key === this.state.base)) this.state.base = "image";
    const shown = this.state.view === "side" ? there
      : there.filter(layer => layer.key === this.state.top);
    const panels = this.at("panels"), keys = shown.map(layer => layer.key).join();
    if (panels.dataset.keys !== keys || panels.dataset.id !== image.id) {
      panels.replaceChildren(...shown.map(layer => this.panel(layer, image)));
      Object.assign(panels.dataset, {keys, id: image.id, view: this.state.view});
    }
    this.results = {};
    for (const layer of shown) this.paint(layer, image, arrays);
    this.choices();
    this.legend(image);
    this.look();
    document.body.dataset.drawn = +(document.body.dataset.drawn ?? 0) + 1;
  }

  panel(layer, image) {
    const [height, width] = image.size;
    const frame = el("div", {class: "frame", style: {"--ratio": width / height},
      onpointermove: event => {
        const box = frame.getBoundingClientRect();
        this.look([Math.floor((event.clientX - box.left) / box.width * width),
          Math.floor((event.clientY - box.top) / box.height * height)]);
      }, onpointerleave: event => event.pointerType === "mouse" && this.look(null)},
    el("img", {src: image.picture, alt: layer.key === "image" ? `image ${image.id}` : ""}),
    el("canvas", {class: "under", width, height, "aria-hidden": "true"}),
    el("canvas", {class: "layer", width, height, role: "img"}), el("span", {class: "cross"}));
    const number = this.there.indexOf(layer);
    return el("figure", {class: "panel", "data-layer": layer.key}, frame, el("figcaption", {},
      el("span", {class: "name"}, el("kbd", {}, String(number)), layer.title),
      el("span", {class: "score"}), el("span", {class: "read"})));
  }

  /** The labels that a layer shows: by the rule at the chosen alpha, or those in its file. */
  labelsOf(key, image, arrays, ignore = true) {
    const record = image.layers[key], n = image.size[0] * image.size[1];
    return record.classes === undefined ? arrays[key]
      : fuse(arrays[key], n, record.classes, arrays.salient ?? null, this.state.alpha,
        this.data.rule, ignore);
  }

  /** A layer as pixels: its `labels`, or its maps as heat. */
  pixels(layer, image, arrays, labels) {
    const key = layer.source ?? layer.key, record = image.layers[key];
    const [height, width] = image.size;
    if (layer.kind === "maps" && this.state.mode === "heat") {
      return paintHeat(arrays[key], height * width, width, record.classes, this.state.alpha,
        this.state.only);
    }
    return paintLabels(labels, width, this.palette, this.state.only);
  }

  paint(layer, image, arrays) {
    const panel = this.at("panels").querySelector(`[data-layer="${layer.key}"]`);
    const canvas = panel.querySelector(".layer"), under = panel.querySelector(".under");
    const score = panel.querySelector(".score");
    const base = this.there.find(other => other.key === this.state.base);
    const stacked = this.state.view === "over" && base.key !== "image" && base !== layer;
    under.hidden = !stacked;
    if (stacked) {
      const labels = this.labelsOf(base.source ?? base.key, image, arrays);
      under.getContext("2d").putImageData(this.pixels(base, image, arrays, labels), 0, 0);
    }
    canvas.hidden = layer.key === "image";
    if (layer.key === "image") return;
    const key = layer.source ?? layer.key, record = image.layers[key];
    const labels = this.labelsOf(key, image, arrays);
    canvas.getContext("2d").putImageData(this.pixels(layer, image, arrays, labels), 0, 0);
    canvas.style.opacity = layer.plain ? 1 : this.state.opacity;
    panel.querySelector("img").style.visibility = layer.plain ? "hidden" : "";
    const found = shares(labels).map(([label, share]) =>
      `${this.label(label)} ${percent(share)} %`).join(", ");
    canvas.setAttribute("aria-label", `${layer.title} of ${image.id}: ${found || "background"}`);
    this.results[layer.key] = {labels, found, record, bytes: arrays[key], kind: layer.kind};
    if (record.miou === undefined) return;
    const live = record.classes !== undefined && this.state.alpha !== record.alpha;
    const miou = live ? meanIou(this.labelsOf(key, image, arrays, false), arrays.mask,
      this.data.labels.length) : record.miou;
    score.textContent = `${live ? "≈ " : ""}${percent(miou)}`;
    score.title = `mIoU of this image${live ? " at this alpha, at the size shown" : ""}`;
  }

  label(number) {
    return number === IGNORE ? "ignored" : this.data.labels[number] ?? `label ${number}`;
  }

  swatch(number) {
    return el("i", {class: number === IGNORE ? "dot hatch" : "dot",
      style: number === IGNORE ? {} : {background: `rgb(${this.palette[number]})`}});
  }

  legend(image) {
    const numbers = [...image.labels];
    if (Object.values(this.results).some(result => result.labels.includes(IGNORE))) {
      numbers.push(IGNORE);
    }
    this.at("legend").replaceChildren(...numbers.map(number => el("li", {}, el("button", {
      type: "button", disabled: number === IGNORE,
      "aria-pressed": String(this.state.only === number),
      title: number === IGNORE ? "pixels that the label rule leaves open" : "show this class alone",
      onclick: () => this.set({only: this.state.only === number ? null : number}),
    }, this.swatch(number), this.label(number)))));
  }

  /** Say what is at a pixel [x, y] of the image, in every panel; null: no longer. */
  look(at = this.state.at) {
    this.state.at = at;
    const image = this.visible[this.state.index], [height, width] = image.size;
    for (const panel of this.at("panels").children) {
      const read = panel.querySelector(".read"), cross = panel.querySelector(".cross");
      const result = this.results[panel.dataset.layer];
      cross.hidden = at === null;
      if (at === null) {
        read.textContent = result?.found ?? "";
        continue;
      }
      cross.style.left = `${100 * (at[0] + 0.5) / width}%`;
      cross.style.top = `${100 * (at[1] + 0.5) / height}%`;
      if (!result) read.textContent = `column ${at[0]}, row ${at[1]}`;
      if (!result) continue;
      const i = at[1] * width + at[0], number = result.labels[i];
      let text = this.label(number);
      if (result.kind === "maps") {
        const top = this.state.only === null
          ? strongest(result.bytes, height * width, result.record.classes, i)
          : {class: this.state.only - 1, byte: result.bytes[
            result.record.classes.indexOf(this.state.only - 1) * height * width + i] ?? 0};
        text += " · " + (top.class < 0 ? "no score"
          : `${this.label(top.class + 1)} ${(top.byte / 255).toFixed(2)}`);
      }
      read.replaceChildren(this.swatch(number), text);
    }
  }

  // ---- controls

  /** Change settings, and do what follows from them. */
  set(changes) {
    Object.assign(this.state, changes);
    if ("label" in changes) this.state.only = changes.label;
    this.sync();
    if (["order", "by", "label", "list"].some(name => name in changes)) this.arrange(true);
    else if (this.visible.length) this.draw();
  }

  /** The controls show the state. */
  sync() {
    const {state} = this;
    for (const name of ["order", "by", "label", "list", "base"]) {
      if (this.at(name)) this.at(name).value = state[name] ?? "";
    }
    for (const name of ["alpha", "opacity"]) this.at(name).value = state[name];
    this.at("alpha-value").textContent = state.alpha.toFixed(2);
    this.at("opacity-value").textContent = `${Math.round(100 * state.opacity)} %`;
    document.querySelectorAll("[data-set]").forEach(button => button.setAttribute("aria-pressed",
      String(String(state[button.dataset.set]) === button.dataset.value)));
    this.at("over").hidden = state.view !== "over";
  }

  /** Buttons and options for the layers that the image has. */
  choices() {
    this.at("layers").replaceChildren(...this.there.map((layer, i) => el("button", {
      type: "button", "aria-pressed": String(layer.key === this.state.top),
      onclick: () => this.set({top: layer.key})}, el("kbd", {}, String(i)), layer.title)));
    this.at("base").replaceChildren(...this.there.map(layer =>
      el("option", {value: layer.key}, layer.title)));
    this.at("base").value = this.state.base;
  }
}
