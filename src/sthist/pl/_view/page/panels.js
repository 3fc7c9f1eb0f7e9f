// The panels, each a viewer of layers in one plane of µm, which move together.
/* global OpenSeadragon */

import { el, niceLength } from "./dom.js";
import { colourQuery } from "./state.js";

const FINEST = 0.02; // µm per pixel of the screen
const SVG = "http://www.w3.org/2000/svg";

export class Stage {
  constructor(element, slide, handlers) {
    Object.assign(this, { element, slide, handlers, panels: [], leader: null, structure: "", swipe: 0.5, outline: [] });
    this.divider = el("div", { id: "divider", hidden: true });
    this.divider.addEventListener("pointerdown", (event) => this.#drag(event));
  }

  // Build the panels that a state needs, and give each its layers.
  show(state) {
    const shown = state.pictures.filter((picture) => picture.on);
    const sets = state.layout === "side" ? shown.map((picture) => [picture])
      : state.layout === "swipe" && shown.length > 1 ? [[shown[0]], [shown[1]]]
      : [shown];
    if (!sets.length) sets.push([]);
    const swiped = state.layout === "swipe" && sets.length === 2;
    const structure = JSON.stringify([swiped, sets.map((set) => set.map((picture) => picture.key))]);
    if (structure !== this.structure) this.#build(sets, swiped, state.view);
    this.structure = structure;
    this.setSwipe(state.swipe);
    this.panels.forEach((panel, i) => panel.setLayers(this.#layers(state, sets[i])));
  }

  goTo(view) {
    for (const panel of this.panels) panel.goTo(view);
  }

  // Show a box in µm as large as it fits.
  fit([x0, y0, x1, y1]) {
    const { width, height } = this.panels[0].holder.getBoundingClientRect();
    this.goTo({ x: (x0 + x1) / 2, y: (y0 + y1) / 2, mpp: Math.max((x1 - x0) / width, (y1 - y0) / height, FINEST) });
  }

  // The middle in µm and µm per pixel of the screen, of all panels.
  view() {
    return this.panels[0]?.viewer ? this.panels[0].view() : null;
  }

  // Whether every tile that is in view is there.
  isWhole() {
    return this.panels.every((panel) => [...panel.layers.values()].every(
      ({ items }) => items.length && items.every((item) => item.getFullyLoaded())));
  }

  setSwipe(share) {
    this.swipe = share;
    if (this.divider.hidden) return;
    this.divider.style.left = `${100 * share}%`;
    this.panels[1].element.style.clipPath = `inset(0 0 0 ${100 * share}%)`;
  }

  setOutline(rings) {
    this.outline = rings;
    for (const panel of this.panels) panel.drawOutline(rings);
  }

  destroy() {
    for (const panel of this.panels) panel.viewer?.destroy();
    this.panels = [];
    this.element.replaceChildren();
  }

  #build(sets, swiped, asked) {
    const view = this.view() || asked;
    this.destroy();
    this.element.classList.toggle("swipe", swiped);
    this.divider.hidden = !swiped;
    this.panels = sets.map((set) => new Panel(this, set));
    this.element.append(...this.panels.map((panel) => panel.element));
    if (swiped) this.element.append(this.divider);
    this.leader = null;
    for (const panel of this.panels) panel.open();
    this.goTo(view);
    this.setOutline(this.outline);
  }

  #layers(state, set) {
    const layers = set.map((picture) => this.#image(picture));
    if (set.length && !set.some((picture) => picture.overlays)) return layers;
    const { plane, version } = this.slide;
    if (state.regions && state.group) {
      const query = colourQuery(state);
      query.append("style", state.style);
      if (state.hidden.length) query.append("hide", state.hidden.join("."));
      query.append("v", version);
      const path = `regions/${encodeURIComponent(state.group)}`;
      layers.push({ id: "regions", path, query: query.toString(), levels: plane.levels, opacity: state.opacity });
    }
    if (state.genes.length) {
      const query = new URLSearchParams({ size: state.dots * devicePixelRatio, v: version });
      for (const gene of state.genes) query.append("g", `${gene.colour.slice(1)}:${gene.name}`);
      layers.push({ id: "molecules", path: "molecules", query: query.toString(), levels: plane.levels, opacity: 1 });
    }
    return layers;
  }

  #image(shown) {
    const picture = this.slide.pictures.find((each) => each.key === shown.key);
    const query = new URLSearchParams({ v: this.slide.version });
    shown.channels.forEach((channel, i) => {
      if (!channel.on) return;
      const limits = channel.low === null ? "" : `:${channel.low}~${channel.high}`;
      query.append("c", `${i}:${channel.colour}${limits}`);
    });
    const path = `image/${encodeURIComponent(picture.key)}`;
    return { id: `image ${picture.key}`, path, query: query.toString(), levels: picture.levels, opacity: shown.opacity };
  }

  #drag(event) {
    event.preventDefault();
    this.divider.setPointerCapture(event.pointerId);
    const box = this.element.getBoundingClientRect();
    const move = ({ clientX }) => {
      const share = Math.min(1, Math.max(0, (clientX - box.left) / box.width));
      this.setSwipe(share);
      this.handlers.swiped(share);
    };
    this.divider.addEventListener("pointermove", move);
    this.divider.addEventListener("pointerup", () => this.divider.removeEventListener("pointermove", move), { once: true });
  }

  moved(panel) {
    if ((this.leader && this.leader !== panel) || this.panels.some((each) => !each.viewer)) return;
    for (const other of this.panels) if (other !== panel) other.follow(panel);
    this.handlers.moved(panel.view());
  }

  pointed(panel, point) {
    for (const other of this.panels) other.setCross(other === panel ? null : point);
    this.handlers.pointed(point);
  }
}

class Panel {
  constructor(stage, set) {
    const known = set.map((shown) => stage.slide.pictures.find((picture) => picture.key === shown.key));
    Object.assign(this, { stage, plane: stage.slide.plane, layers: new Map(), order: [] });
    this.holder = el("div", { class: "viewer" });
    this.title = el("div", { class: "title" }, known.map((picture) => picture.title).join(" + ") || "no image");
    this.label = el("span");
    this.bar = el("i");
    this.cross = el("div", { class: "cross", hidden: true });
    this.svg = document.createElementNS(SVG, "svg");
    const scale = el("div", { class: "scale" }, this.label, this.bar);
    const dark = known.length > 0 && !known[0].rgb;
    this.element = el("section", { class: dark ? "panel light-on-dark" : "panel" });
    this.element.append(this.holder, this.svg, this.cross, this.title, scale);
    this.outline = [];
  }

  open() {
    this.viewer = new OpenSeadragon.Viewer({
      element: this.holder,
      drawer: "canvas",
      showNavigationControl: false,
      preserveViewport: true,
      animationTime: 0.35,
      springStiffness: 10,
      zoomPerScroll: 1.3,
      minZoomImageRatio: 0.3,
      maxZoomLevel: Math.max(4, this.plane.width_um / (FINEST * 1000)),
      visibilityRatio: 0.2,
      imageLoaderLimit: 6,
      maxImageCacheCount: 400,
      timeout: 300000,
      subPixelRoundingForTransparency: OpenSeadragon.SUBPIXEL_ROUNDING_OCCURRENCES.ALWAYS,
      gestureSettingsMouse: { clickToZoom: false, dblClickToZoom: true },
      gestureSettingsTouch: { clickToZoom: false },
    });
    const lead = () => { this.stage.leader = this; };
    for (const name of ["canvas-press", "canvas-scroll", "canvas-drag", "canvas-pinch", "canvas-key", "canvas-double-click"]) {
      this.viewer.addHandler(name, lead);
    }
    this.viewer.addHandler("canvas-click", (event) => {
      if (event.quick) this.stage.handlers.clicked(this.toUm(event.position), this.view().mpp);
    });
    this.viewer.addHandler("viewport-change", () => this.#changed());
    this.viewer.addHandler("animation", () => this.#changed());
    this.viewer.addHandler("resize", () => this.#changed());
    this.viewer.addHandler("tile-load-failed", (event) => this.stage.handlers.failed(event.tile?.getUrl?.()));
    this.holder.addEventListener("pointermove", (event) => {
      const box = this.holder.getBoundingClientRect();
      const point = this.toUm(new OpenSeadragon.Point(event.clientX - box.left, event.clientY - box.top));
      this.stage.pointed(this, point);
    });
    this.holder.addEventListener("pointerleave", () => this.stage.pointed(this, null));
  }

  toWorld({ x, y }) {
    return new OpenSeadragon.Point((x - this.plane.x0) / this.plane.width_um, (y - this.plane.y0) / this.plane.width_um);
  }

  toUm(pixel) {
    const point = this.viewer.viewport.pointFromPixel(pixel, true);
    return { x: this.plane.x0 + point.x * this.plane.width_um, y: this.plane.y0 + point.y * this.plane.width_um };
  }

  toPixel(point) {
    return this.viewer.viewport.pixelFromPoint(this.toWorld(point), true);
  }

  view() {
    const viewport = this.viewer.viewport;
    const middle = viewport.getCenter(true);
    const mpp = this.plane.width_um / (viewport.getZoom(true) * viewport.getContainerSize().x);
    return { x: this.plane.x0 + middle.x * this.plane.width_um, y: this.plane.y0 + middle.y * this.plane.width_um, mpp };
  }

  goTo(view) {
    const viewport = this.viewer.viewport;
    if (view) {
      viewport.zoomTo(this.plane.width_um / (view.mpp * viewport.getContainerSize().x), null, true);
      viewport.panTo(this.toWorld(view), true);
    } else {
      viewport.fitBounds(new OpenSeadragon.Rect(0, 0, 1, this.plane.height / this.plane.width), true);
    }
    this.#changed();
  }

  follow(other) {
    const from = other.viewer.viewport;
    this.viewer.viewport.zoomTo(from.getZoom(true), null, true);
    this.viewer.viewport.panTo(from.getCenter(true), true);
    this.#drawOver();
  }

  // Give the viewer these layers, the last on top. A layer that looks different is replaced when the new one is there.
  setLayers(wanted) {
    this.order = wanted.map((layer) => layer.id);
    for (const [id, layer] of this.layers) {
      if (this.order.includes(id)) continue;
      layer.items.forEach((item) => this.viewer.world.removeItem(item));
      layer.gone = true;
      this.layers.delete(id);
    }
    for (const { id, path, query, levels, opacity } of wanted) {
      const address = `${path} ${query}`;
      const layer = this.layers.get(id) || { items: [], address: null };
      this.layers.set(id, layer);
      layer.opacity = opacity;
      layer.items.forEach((item) => item.setOpacity(opacity));
      if (layer.address === address) continue;
      layer.address = address;
      this.#add(layer, address, this.#source(path, query, levels));
    }
    this.#sort();
  }

  #source(path, query, levels) {
    const { width, height, tile } = this.plane;
    return {
      width: width * 2 ** levels,
      height: height * 2 ** levels,
      tileSize: tile,
      minLevel: 0,
      maxLevel: levels,
      getTileUrl: (level, x, y) => `${path}/${level}/${x}/${y}?${query}`,
    };
  }

  #add(layer, address, tileSource) {
    this.viewer.addTiledImage({
      tileSource,
      x: 0,
      y: 0,
      width: 1,
      opacity: layer.opacity,
      success: ({ item }) => {
        if (layer.gone || layer.address !== address) {
          this.viewer.world.removeItem(item);
          return;
        }
        item.setOpacity(layer.opacity);
        const before = [...layer.items];
        layer.items.push(item);
        this.#sort();
        const replace = () => {
          before.filter((old) => layer.items.includes(old)).forEach((old) => this.viewer.world.removeItem(old));
          layer.items = layer.items.filter((each) => !before.includes(each));
        };
        if (before.length) {
          item.addHandler("fully-loaded-change", ({ fullyLoaded }) => fullyLoaded && replace());
          setTimeout(replace, 4000);
        }
      },
      error: () => this.stage.handlers.failed(null),
    });
  }

  #sort() {
    const items = this.order.flatMap((id) => this.layers.get(id)?.items ?? []);
    items.forEach((item, i) => {
      if (this.viewer.world.getIndexOfItem(item) >= 0) this.viewer.world.setItemIndex(item, i);
    });
  }

  setCross(point) {
    this.cross.hidden = !point;
    if (!point) return;
    const { x, y } = this.toPixel(point);
    Object.assign(this.cross.style, { left: `${x}px`, top: `${y}px` });
  }

  drawOutline(rings) {
    this.outline = rings;
    this.svg.replaceChildren();
    this.lines = rings.flatMap((ring) => ["under", ""].map((name) => {
      const line = document.createElementNS(SVG, "polygon");
      if (name) line.setAttribute("class", name);
      this.svg.append(line);
      return [line, ring];
    }));
    this.#drawOver();
  }

  #changed() {
    this.#drawOver();
    this.stage.moved(this);
  }

  #drawOver() {
    const { mpp } = this.view();
    if (!Number.isFinite(mpp)) return;
    const length = niceLength(140 * mpp);
    this.bar.style.width = `${length / mpp}px`;
    this.label.textContent = length < 1000 ? `${Number(length.toPrecision(3))} µm` : `${length / 1000} mm`;
    for (const [line, ring] of this.lines ?? []) {
      const corners = ring.map(([x, y]) => this.toPixel({ x, y })).map(({ x, y }) => `${x.toFixed(1)},${y.toFixed(1)}`);
      line.setAttribute("points", corners.join(" "));
    }
  }
}
