// What is shown: made of what the server says, the call's arguments, and the part of the address after '#'.

const DOT_COLOURS = ["#ff2d2d", "#00e5ff", "#ffe600", "#39ff14", "#ff5cf0", "#ff9a1f", "#8f7bff", "#ffffff"];

export function firstState(slide) {
  const state = {
    view: null, // {x, y, mpp}: the middle in µm, and µm per pixel of the screen; null for the whole slide
    layout: slide.pictures.length > 3 ? "stack" : "side",
    swipe: 0.5,
    pictures: slide.pictures.map((picture) => ({
      key: picture.key,
      on: true,
      opacity: 1,
      overlays: true,
      channels: picture.channels.map(({ colour, shown }) => ({ on: shown, colour, low: null, high: null })),
    })),
    group: slide.groups.length ? slide.groups[0].key : null,
    regions: false,
    color: null, // {kind, name, layer, cmap, vmin, vmax}
    style: "fill",
    opacity: 0.75,
    hidden: [],
    genes: [], // {name, colour}
    dots: 6,
  };
  if (state.layout === "stack") state.pictures.forEach((picture, i) => { picture.on = i === 0; });
  if (slide.start.color) {
    const { group, ...color } = slide.start.color;
    Object.assign(state, { group, color, regions: true });
  }
  for (const name of slide.start.genes) addGene(state, name);
  return state;
}

export function addGene(state, name) {
  if (state.genes.some((gene) => gene.name === name)) return;
  const free = DOT_COLOURS.find((colour) => !state.genes.some((gene) => gene.colour === colour));
  state.genes.push({ name, colour: free || "#ffffff" });
}

export function toHash(state) {
  const { view, ...rest } = state;
  const place = view ? `x=${view.x.toFixed(2)}&y=${view.y.toFixed(2)}&mpp=${Number(view.mpp.toPrecision(5))}&` : "";
  return `#${place}show=${encodeURIComponent(JSON.stringify(rest))}`;
}

// The state that an address asks for: what this slide does not have is left as it was.
export function fromHash(hash, slide, state) {
  const asked = new URLSearchParams(hash.replace(/^#/, ""));
  const [x, y, mpp] = ["x", "y", "mpp"].map((name) => parseFloat(asked.get(name)));
  if ([x, y, mpp].every(Number.isFinite) && mpp > 0) state.view = { x, y, mpp };
  let show = {};
  try {
    show = JSON.parse(asked.get("show") || "{}") || {};
  } catch {
    return state;
  }
  const oneOf = (name, values) => { if (values.includes(show[name])) state[name] = show[name]; };
  const share = (name, low, high) => { if (show[name] >= low && show[name] <= high) state[name] = Number(show[name]); };
  oneOf("layout", ["side", "swipe", "stack"]);
  oneOf("style", ["fill", "outline", "both"]);
  oneOf("group", slide.groups.map((group) => group.key));
  oneOf("regions", [true, false]);
  share("swipe", 0, 1);
  share("opacity", 0, 1);
  share("dots", 1, 40);
  if (Array.isArray(show.hidden)) state.hidden = show.hidden.filter(Number.isInteger);
  if (show.color && typeof show.color.name === "string") {
    const { kind, name, layer, cmap, vmin, vmax } = show.color;
    state.color = { kind, name, layer: layer ?? null, cmap: cmap ?? null, vmin: vmin ?? null, vmax: vmax ?? null };
  } else if (show.color === null) state.color = null;
  if (Array.isArray(show.genes)) {
    state.genes = show.genes.filter((gene) => typeof gene.name === "string" && isColour(gene.colour));
  }
  for (const [i, asked] of (Array.isArray(show.pictures) ? show.pictures : []).entries()) {
    const place = state.pictures.findIndex((picture) => picture.key === asked.key);
    if (place < 0) continue;
    const picture = state.pictures[place];
    picture.on = Boolean(asked.on);
    picture.overlays = Boolean(asked.overlays);
    if (asked.opacity >= 0 && asked.opacity <= 1) picture.opacity = asked.opacity;
    for (const [j, channel] of picture.channels.entries()) {
      const wanted = asked.channels?.[j];
      if (!wanted) continue;
      channel.on = Boolean(wanted.on);
      if (isColour(`#${wanted.colour}`)) channel.colour = wanted.colour;
      const limits = [wanted.low, wanted.high];
      [channel.low, channel.high] = limits.every(Number.isFinite) ? limits : [null, null];
    }
    state.pictures.splice(place, 1);
    state.pictures.splice(Math.min(i, state.pictures.length), 0, picture);
  }
  return state;
}

function isColour(text) {
  return typeof text === "string" && /^#[0-9a-f]{6}$/i.test(text);
}

// Parameters of the address of tiles, colours and clicks.
export function colourQuery(state) {
  const query = new URLSearchParams();
  if (!state.color) return query;
  for (const name of ["kind", "name", "layer", "cmap", "vmin", "vmax"]) {
    const value = state.color[name];
    if (value !== null && value !== undefined) query.append(name, value);
  }
  return query;
}
