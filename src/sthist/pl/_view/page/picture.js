// What is shown as a PNG file: panels, scale bar and legend.

const LINE = 16;

export function savePicture(stage, controls, slide) {
  const ratio = devicePixelRatio;
  const whole = stage.element.getBoundingClientRect();
  const legend = legendOf(controls);
  const width = whole.width + (legend ? 190 : 0);
  const canvas = document.createElement("canvas");
  [canvas.width, canvas.height] = [Math.round(width * ratio), Math.round(whole.height * ratio)];
  const pen = canvas.getContext("2d");
  pen.scale(ratio, ratio);
  pen.fillStyle = "#fff";
  pen.fillRect(0, 0, width, whole.height);
  stage.panels.forEach((panel, i) => drawPanel(pen, panel, whole, i === 1 && !stage.divider.hidden ? stage.swipe : 0));
  if (legend) drawLegend(pen, legend, whole.width + 12, whole.height);
  canvas.toBlob((blob) => {
    const link = document.createElement("a");
    link.href = URL.createObjectURL(blob);
    link.download = `${slide.name.replace(/\.zarr$/, "").replace(/[^\w.-]+/g, "_")}.png`;
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 10000);
  });
}

function drawPanel(pen, panel, whole, swipe) {
  const box = panel.element.getBoundingClientRect();
  const [left, top] = [box.left - whole.left, box.top - whole.top];
  pen.save();
  pen.beginPath();
  pen.rect(left + swipe * box.width, top, box.width * (1 - swipe), box.height);
  pen.clip();
  pen.fillStyle = getComputedStyle(panel.element).backgroundColor;
  pen.fillRect(left, top, box.width, box.height);
  pen.drawImage(panel.viewer.drawer.canvas, left, top, box.width, box.height);
  const title = panel.title.getBoundingClientRect();
  label(pen, panel.title.textContent, title.left - whole.left, title.top - whole.top);
  const length = panel.bar.getBoundingClientRect().width;
  if (length) {
    const [right, bottom] = [left + box.width - 18, top + box.height - 16];
    pen.fillStyle = "#000a";
    pen.fillRect(right - length - 6, bottom - 22, length + 12, 30);
    pen.fillStyle = "#fff";
    pen.fillRect(right - length, bottom, length, 3);
    pen.font = "12px sans-serif";
    pen.textAlign = "center";
    pen.fillText(panel.label.textContent, right - length / 2, bottom - 6);
    pen.textAlign = "left";
  }
  pen.restore();
}

function label(pen, text, left, top) {
  pen.font = "12px sans-serif";
  pen.fillStyle = "#000a";
  pen.fillRect(left, top, pen.measureText(text).width + 12, 20);
  pen.fillStyle = "#fff";
  pen.fillText(text, left + 6, top + 14);
}

// The lines that explain the colours: [colour, text], or a bar; null where nothing is coloured.
function legendOf({ state, legend }) {
  const genes = state.genes.map((gene) => [gene.colour, gene.name]);
  const coloured = state.regions && state.color && legend && legend.kind !== "error" ? legend : null;
  if (!genes.length && !coloured) return null;
  const classes = coloured?.kind === "classes"
    ? coloured.names.map((name, i) => [coloured.colours[i], name, i]).filter(([, , i]) => coloured.counts[i] && !state.hidden.includes(i))
    : [];
  return { title: coloured ? state.color.name : null, bar: coloured?.kind === "numbers" ? coloured : null, classes, genes };
}

function drawLegend(pen, { title, bar, classes, genes }, left, height) {
  let top = 20;
  const line = (colour, text) => {
    if (top > height - 8) return;
    if (colour) {
      pen.fillStyle = colour;
      pen.fillRect(left, top - 10, 11, 11);
      pen.strokeStyle = "#0005";
      pen.strokeRect(left, top - 10, 11, 11);
    }
    pen.fillStyle = "#000";
    pen.fillText(text, left + (colour ? 17 : 0), top, 155);
    top += LINE;
  };
  pen.font = "bold 12px sans-serif";
  if (title) line(null, title);
  pen.font = "12px sans-serif";
  if (bar) {
    const colours = pen.createLinearGradient(left, 0, left + 160, 0);
    bar.colours.forEach((colour, i) => colours.addColorStop(i / (bar.colours.length - 1), colour));
    pen.fillStyle = colours;
    pen.fillRect(left, top - 8, 160, 12);
    top += 18;
    pen.fillStyle = "#000";
    pen.fillText(String(Number(bar.vmin.toPrecision(4))), left, top);
    pen.textAlign = "right";
    pen.fillText(String(Number(bar.vmax.toPrecision(4))), left + 160, top);
    pen.textAlign = "left";
    top += LINE + 4;
  }
  for (const [colour, name] of classes) line(colour, name);
  if (genes.length) {
    top += 6;
    pen.font = "bold 12px sans-serif";
    line(null, "Molecules");
    pen.font = "12px sans-serif";
    for (const [colour, name] of genes) line(colour, name);
  }
}
