// The side bar: images and channels, regions and their colours, molecules, and what was clicked.

import { ask, choice, el, later, shortNumber } from "./dom.js";
import { addGene, colourQuery } from "./state.js";

const MOST_CLASSES = 300;
const KINDS = { obs: "column", gene: "gene", obsm: "score" };

export class Controls {
  constructor(element, slide, state, changed) {
    Object.assign(this, { element, slide, state, changed, legend: null, facts: [] });
    this.build();
    this.readColours();
  }

  build() {
    const { slide, state } = this;
    document.title = `${slide.name} · sthist`;
    this.legendBox = el("div");
    this.factsBox = el("div", { id: "facts" });
    const parts = [el("h1", {}, slide.name), ...slide.notes.map((note) => el("p", { class: "note" }, note))];
    if (slide.pictures.length) parts.push(...this.#images());
    if (slide.groups.length) parts.push(...this.#regions());
    if (slide.molecules) parts.push(...this.#molecules());
    parts.push(el("h2", {}, "Clicked"), this.factsBox);
    this.element.replaceChildren(...parts);
    this.#drawLegend();
    this.showFacts(this.facts);
  }

  #rebuild() {
    this.build();
    this.changed();
  }

  #images() {
    const { state } = this;
    const layouts = [["side", "Side by side"], ["swipe", "Swipe"], ["stack", "Stacked"]];
    const set = (layout) => { state.layout = layout; this.#rebuild(); };
    const rows = state.pictures.map((picture, i) => this.#picture(picture, i));
    const head = el("h2", {}, "Images");
    return [head, choice(layouts, state.layout, set), ...rows];
  }

  #picture(shown, i) {
    const { state } = this;
    const picture = this.slide.pictures.find((each) => each.key === shown.key);
    const on = el("input", { type: "checkbox", checked: shown.on, onchange: () => { shown.on = on.checked; this.#rebuild(); } });
    const up = el("button", { title: "Move up", disabled: i === 0, onclick: () => {
      state.pictures.splice(i, 1);
      state.pictures.splice(i - 1, 0, shown);
      this.#rebuild();
    } }, "↑");
    const rows = [el("div", { class: "row" }, el("label", { class: "row name" }, on, el("span", { class: "name" }, picture.title)), i ? up : null)];
    if (shown.on) {
      const opacity = this.#range(shown.opacity, (value) => { shown.opacity = value; });
      const overlays = el("input", { type: "checkbox", checked: shown.overlays, onchange: () => { shown.overlays = overlays.checked; this.changed(); } });
      rows.push(el("div", { class: "row under" }, el("span", { class: "dim" }, "opacity"), opacity,
        el("label", { class: "dim", title: "Draw regions and molecules on it" }, overlays, " overlays")));
      shown.channels.forEach((channel, j) => rows.push(this.#channel(picture, j, channel)));
    }
    return el("div", { class: "picture" }, ...rows);
  }

  #channel(picture, place, channel) {
    const changed = later(() => this.changed(), 150);
    const on = el("input", { type: "checkbox", checked: channel.on, onchange: () => { channel.on = on.checked; this.#rebuild(); } });
    const colour = el("input", { type: "color", value: `#${channel.colour}`, oninput: () => { channel.colour = colour.value.slice(1); changed(); } });
    const name = el("label", { class: "row name" }, on, el("span", { class: "name" }, picture.channels[place].name));
    const rows = [el("div", { class: "row" }, name, colour)];
    if (channel.on) {
      const limit = (which) => {
        const input = el("input", { type: "number", class: "small", step: "any", title: which === "low" ? "shown as black" : "shown as full light" });
        input.addEventListener("change", () => {
          const [low, high] = [low_.valueAsNumber, high_.valueAsNumber];
          if (!(low < high)) return;
          Object.assign(channel, { low, high });
          this.changed();
        });
        return input;
      };
      const [low_, high_] = [limit("low"), limit("high")];
      const fill = ({ low, high }) => { low_.value = shortNumber(low); high_.value = shortNumber(high); };
      const automatic = () => ask(`limits/${encodeURIComponent(picture.key)}/${place}`).then(fill, () => {});
      if (channel.low === null) automatic();
      else fill(channel);
      const reset = el("button", { title: "Automatic limits", onclick: () => {
        Object.assign(channel, { low: null, high: null });
        automatic();
        this.changed();
      } }, "auto");
      rows.push(el("div", { class: "row" }, low_, el("span", { class: "dim" }, "to"), high_, reset));
    }
    return el("div", { class: "under" }, ...rows);
  }

  #range(value, set) {
    const input = el("input", { type: "range", min: 0, max: 1, step: 0.01, value, oninput: () => { set(input.valueAsNumber); this.changed(); } });
    return input;
  }

  #regions() {
    const { slide, state } = this;
    const on = el("input", { type: "checkbox", id: "regions", checked: state.regions, onchange: () => { state.regions = on.checked; this.changed(); } });
    const groups = slide.groups.map((group) => el("option", { value: group.key, selected: group.key === state.group },
      group.key === group.shapes ? `${group.key} (${group.n})` : `${group.key}: ${group.shapes} (${group.n})`));
    const group = el("select", { class: "name", title: "Which regions", onchange: () => {
      Object.assign(state, { group: group.value, color: null, hidden: [], regions: true });
      this.#recolour();
    } }, ...groups);
    group.style.minWidth = "0";
    const search = this.#search("Column, gene or score …", "colour", async (text) => {
      const found = await ask("find", { q: text, group: state.group });
      return found.map((source) => [source, source.name, KINDS[source.kind]]);
    }, ({ kind, name }) => {
      const cmap = state.color?.cmap ?? null;
      Object.assign(state, { regions: true, hidden: [], color: { kind, name, layer: null, cmap, vmin: null, vmax: null } });
      this.#recolour();
    });
    const styles = [["fill", "Filled"], ["outline", "Outlines"], ["both", "Both"]];
    const style = choice(styles, state.style, (value) => { state.style = value; state.regions = true; this.#rebuild(); });
    return [
      el("h2", {}, "Regions"),
      el("div", { class: "row" }, on, group),
      el("div", { class: "row" }, el("span", { class: "dim" }, "colour by")),
      search,
      this.legendBox,
      el("div", { class: "row" }, el("div", { class: "name" }, style)),
      el("div", { class: "row" }, el("span", { class: "dim" }, "opacity"), this.#range(state.opacity, (value) => { state.opacity = value; })),
    ];
  }

  #molecules() {
    const { state } = this;
    const search = this.#search("Gene …", "gene", async (text) => {
      const found = await ask("find/molecules", { q: text });
      return found.map((name) => [name, name, ""]);
    }, (name) => { addGene(state, name); this.#rebuild(); });
    const changed = later(() => this.changed(), 200);
    const rows = state.genes.map((gene, i) => {
      const colour = el("input", { type: "color", value: gene.colour, oninput: () => { gene.colour = colour.value; changed(); } });
      const away = el("button", { title: "Remove", onclick: () => { state.genes.splice(i, 1); this.#rebuild(); } }, "×");
      return el("div", { class: "row" }, colour, el("span", { class: "name" }, gene.name), away);
    });
    const size = el("input", { type: "range", min: 2, max: 20, step: 1, value: state.dots, oninput: () => { state.dots = size.valueAsNumber; changed(); } });
    const sizes = state.genes.length ? el("div", { class: "row" }, el("span", { class: "dim" }, "size"), size) : null;
    return [el("h2", {}, "Molecules"), search, ...rows, sizes].filter(Boolean);
  }

  // A field that proposes names as one types.
  #search(hint, name, find, choose) {
    const list = el("ul", { class: "found", hidden: true });
    const input = el("input", { type: "search", placeholder: hint, "aria-label": hint, autocomplete: "off", id: `find-${name}` });
    let at = -1;
    let asked = 0;
    const pick = (value) => { list.hidden = true; input.value = ""; choose(value); };
    const mark = () => [...list.children].forEach((item, i) => item.classList.toggle("at", i === at));
    const look = later(async () => {
      const mine = ++asked;
      const found = await find(input.value.trim()).catch(() => []);
      if (mine !== asked || document.activeElement !== input) return;
      at = found.length ? 0 : -1;
      const items = found.map(([value, text, kind]) => {
        const item = el("li", {}, el("span", {}, text), el("span", { class: "dim" }, kind));
        item.addEventListener("pointerdown", (event) => { event.preventDefault(); pick(value); });
        item.pick = () => pick(value);
        return item;
      });
      list.replaceChildren(...(items.length ? items : [el("li", { class: "dim" }, "nothing of that name")]));
      list.hidden = false;
      mark();
    }, 100);
    input.addEventListener("input", look);
    input.addEventListener("focus", look);
    input.addEventListener("blur", () => { list.hidden = true; });
    input.addEventListener("keydown", (event) => {
      const n = list.children.length;
      if (event.key === "ArrowDown") at = Math.min(at + 1, n - 1);
      else if (event.key === "ArrowUp") at = Math.max(at - 1, 0);
      else if (event.key === "Enter") list.children[at]?.pick?.();
      else if (event.key === "Escape") list.hidden = true;
      else return;
      event.preventDefault();
      mark();
      list.children[at]?.scrollIntoView({ block: "nearest" });
    });
    return el("div", { class: "search" }, input, list);
  }

  #recolour() {
    this.build();
    this.readColours();
    this.changed();
  }

  // Ask what the colours mean.
  async readColours() {
    const { state } = this;
    if (!state.group || !state.color) {
      this.legend = null;
      this.#drawLegend();
      return;
    }
    const asked = `colours/${encodeURIComponent(state.group)}?${colourQuery(state)}`;
    this.asked = asked;
    try {
      const found = await ask(asked);
      if (this.asked === asked) this.legend = found;
    } catch (error) {
      if (this.asked === asked) this.legend = { kind: "error", text: error.message };
    }
    this.#drawLegend();
  }

  #drawLegend() {
    const { state, legend, legendBox } = this;
    legendBox.replaceChildren();
    if (!state.color) return;
    const away = el("button", { title: "No colours", onclick: () => { state.color = null; state.hidden = []; this.#recolour(); } }, "×");
    const kind = KINDS[state.color.kind] ?? "";
    legendBox.append(el("div", { class: "row" }, el("b", { class: "name" }, state.color.name), el("span", { class: "dim" }, kind), away));
    if (!legend) return;
    if (legend.kind === "error") legendBox.append(el("p", { class: "note" }, legend.text));
    else if (legend.kind === "classes") legendBox.append(this.#classes(legend));
    else legendBox.append(...this.#numbers(legend));
  }

  #classes(legend) {
    const { state } = this;
    const present = legend.names.map((name, i) => [name, i]).filter(([, i]) => legend.counts[i]);
    const rows = present.slice(0, MOST_CLASSES).map(([name, i]) => {
      const row = el("div", { class: state.hidden.includes(i) ? "row off" : "row", title: "Show or hide", onclick: () => {
        state.hidden = state.hidden.includes(i) ? state.hidden.filter((each) => each !== i) : [...state.hidden, i];
        row.classList.toggle("off", state.hidden.includes(i));
        this.changed();
      } }, el("span", { class: "swatch", style: { background: legend.colours[i] } }), el("span", { class: "name" }, name),
      el("span", { class: "count" }, String(legend.counts[i])));
      return row;
    });
    const more = present.length - rows.length;
    return el("div", { class: "classes" }, ...rows, more ? el("p", { class: "note" }, `and ${more} more`) : null);
  }

  #numbers(legend) {
    const { slide, state } = this;
    const bar = el("div", { class: "bar", style: { background: `linear-gradient(90deg, ${legend.colours.join(", ")})` } });
    const limit = (name) => {
      const input = el("input", { type: "number", class: "small", step: "any", value: shortNumber(legend[name]), title: `values go from ${shortNumber(legend.lowest)} to ${shortNumber(legend.highest)}` });
      input.addEventListener("change", () => {
        const typed = Number.isFinite(input.valueAsNumber) ? input.valueAsNumber : null;
        const { vmin, vmax } = { vmin: legend.vmin, vmax: legend.vmax, ...(typed === null ? {} : { [name]: typed }) };
        if (vmin > vmax) {
          input.value = shortNumber(legend[name]);
          return;
        }
        state.color[name] = typed;
        this.readColours();
        this.changed();
      });
      return input;
    };
    const names = slide.cmaps.includes(state.color.cmap ?? "viridis") ? slide.cmaps : [state.color.cmap, ...slide.cmaps];
    const cmap = el("select", { title: "Colour map", onchange: () => { state.color.cmap = cmap.value; this.readColours(); this.changed(); } },
      ...names.map((name) => el("option", { value: name, selected: name === (state.color.cmap ?? "viridis") }, name)));
    const rows = [bar, el("div", { class: "row" }, limit("vmin"), el("span", { class: "fill" }), cmap, limit("vmax"))];
    const group = slide.groups.find((each) => each.key === state.group);
    if (state.color.kind === "gene" && group?.layers.length) {
      const layer = el("select", { class: "name", onchange: () => {
        Object.assign(state.color, { layer: layer.value || null, vmin: null, vmax: null });
        this.readColours();
        this.changed();
      } }, el("option", { value: "" }, "X"), ...group.layers.map((name) => el("option", { value: name, selected: name === state.color.layer }, name)));
      rows.push(el("div", { class: "row" }, el("span", { class: "dim" }, "layer"), layer));
    }
    if (legend.missing) rows.push(el("p", { class: "note" }, `${legend.missing} have no value`));
    return rows;
  }

  showFacts(found) {
    this.facts = found;
    if (!found.length) {
      this.factsBox.replaceChildren(el("p", { class: "note" }, "Click a cell, spot or tile to see its values."));
      return;
    }
    this.factsBox.replaceChildren(...found.map((region) => {
      const rows = [
        ["in", region.group === region.shapes ? region.group : `${region.group} (${region.shapes})`],
        ["at", `${shortNumber(region.x)}, ${shortNumber(region.y)} µm`],
        ["area", `${shortNumber(region.area)} µm²`],
        ...region.values,
      ];
      if (region.genes.length) rows.push(["most expressed", region.genes.map(([gene, value]) => `${gene} ${value}`).join(", ")]);
      const cells = rows.map(([name, value]) => el("tr", {}, el("td", {}, name), el("td", {}, value)));
      return el("div", {}, el("b", {}, region.id), el("table", { class: "facts" }, ...cells));
    }));
  }
}
