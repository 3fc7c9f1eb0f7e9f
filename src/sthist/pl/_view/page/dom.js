// Small helpers. Names come from other people's files: they become text, never markup.

export function el(tag, properties = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (name === "class") made.className = value;
    else if (name === "style") Object.assign(made.style, value);
    else if (name.startsWith("on")) made.addEventListener(name.slice(2), value);
    else if (name.startsWith("aria-") || name === "for") made.setAttribute(name, value);
    else made[name] = value;
  }
  made.append(...children.filter((child) => child !== null && child !== undefined));
  return made;
}

export async function ask(path, parameters = {}) {
  const query = new URLSearchParams();
  for (const [name, value] of Object.entries(parameters)) {
    if (value !== null && value !== undefined) query.append(name, value);
  }
  const text = query.toString();
  const answer = await fetch(text ? `${path}?${text}` : path);
  const found = await answer.json();
  if (!answer.ok) throw new Error(found.error || answer.statusText);
  return found;
}

export function later(action, milliseconds) {
  let timer = null;
  return (...given) => {
    clearTimeout(timer);
    timer = setTimeout(() => action(...given), milliseconds);
  };
}

export function choice(options, chosen, choose) {
  const buttons = options.map(([value, label]) =>
    el("button", { "aria-pressed": String(value === chosen), onclick: () => choose(value) }, label));
  return el("div", { class: "choice", role: "group" }, ...buttons);
}

export function shortNumber(value) {
  return String(Number(value.toPrecision(4)));
}

// The largest of 1, 2 or 5 times a power of ten that is not more.
export function niceLength(most) {
  const power = 10 ** Math.floor(Math.log10(most));
  return [5, 2, 1].map((step) => step * power).find((length) => length <= most * (1 + 1e-9));
}
