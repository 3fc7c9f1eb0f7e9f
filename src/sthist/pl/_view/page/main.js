// Puts the page together: what the server has, the state, the panels and the side bar.

import { Controls } from "./controls.js";
import { ask, el, later } from "./dom.js";
import { Stage } from "./panels.js";
import { savePicture } from "./picture.js";
import { colourQuery, firstState, fromHash, toHash } from "./state.js";

const LOOK_EVERY = 4000;
const by = (id) => document.getElementById(id);

let slide = null;
let state = null;
let stage = null;
let controls = null;
let written = "";

const remember = later(() => {
  state.view = stage.view();
  written = toHash(state);
  history.replaceState(null, "", written);
}, 250);

function changed() {
  stage.show(state);
  remember();
}

function start() {
  stage?.destroy();
  stage = new Stage(by("stage"), slide, {
    moved: () => remember(),
    pointed,
    clicked,
    failed,
    swiped: (share) => { state.swipe = share; remember(); },
  });
  controls = new Controls(by("side"), slide, state, changed);
  stage.show(state);
  if (state.view || !slide.start.within) stage.goTo(state.view);
  else stage.fit(slide.start.within);
}

function pointed(point) {
  const { mpp } = stage.view();
  const scale = `${Number(mpp.toPrecision(3))} µm/px`;
  by("where").textContent = point ? `x ${point.x.toFixed(1)}  y ${point.y.toFixed(1)} µm   ${scale}` : scale;
}

async function clicked(point, mpp) {
  const query = colourQuery(state);
  for (const [name, value] of Object.entries({ ...point, mpp })) query.append(name, value);
  if (state.group) query.append("group", state.group);
  try {
    const found = await ask(`at?${query}`);
    controls.showFacts(found);
    stage.setOutline(found.length ? found[0].outline : []);
    if (found.length) by("facts").scrollIntoView({ block: "nearest" });
  } catch (error) {
    say(error.message);
  }
}

const failed = later(async (address) => {
  if (!address) return;
  try {
    const answer = await fetch(address);
    if (!answer.ok) banner((await answer.json()).error);
  } catch {
    look();
  }
}, 300);

function banner(text, ...buttons) {
  by("banner").hidden = !text;
  by("banner").replaceChildren(el("span", {}, text), ...buttons);
}

// Say whether tiles are still on their way; 'whole' is for programs that wait for the picture.
function showWhether() {
  const whole = stage.isWhole();
  by("busy").hidden = whole;
  by("stage").dataset.whole = String(whole);
}

function say(text) {
  by("said").textContent = text;
  setTimeout(() => { by("said").textContent = ""; }, 4000);
}

// Look whether the store has changed, whether it was read again, and whether the server is there at all.
async function look() {
  let now = null;
  try {
    now = await ask("state");
  } catch {
    banner("The viewer has ended. Start it again to go on; this page shows what it has.");
    return;
  }
  if (now.version !== slide.version) {
    banner("");
    await readAgain();
  } else if (now.changed) {
    banner("The store has changed since it was opened: what is shown may be old.",
      el("button", { onclick: reload }, "Read it again"));
  }
}

async function reload() {
  try {
    await ask("reload");
    banner("");
    await readAgain();
  } catch (error) {
    banner(`The store cannot be read: ${error.message}`, el("button", { onclick: reload }, "Try again"));
  }
}

async function readAgain() {
  state.view = stage.view();
  const before = toHash(state);
  slide = await ask("slide");
  state = fromHash(before, slide, firstState(slide));
  start();
}

async function copyLink() {
  state.view = stage.view();
  const address = location.href.split("#")[0] + toHash(state);
  try {
    await navigator.clipboard.writeText(address);
    say("The link is copied.");
  } catch {
    say("The link is in the address bar.");
  }
}

async function main() {
  try {
    slide = await ask("slide");
  } catch (error) {
    banner(error.message);
    return;
  }
  state = fromHash(location.hash, slide, firstState(slide));
  start();
  by("whole").addEventListener("click", () => stage.goTo(null));
  by("link").addEventListener("click", copyLink);
  by("save").addEventListener("click", () => savePicture(stage, controls, slide));
  window.addEventListener("hashchange", () => {
    if (location.hash === written) return;
    state = fromHash(location.hash, slide, firstState(slide));
    start();
  });
  setInterval(look, LOOK_EVERY);
  setInterval(showWhether, 100);
}

main();
