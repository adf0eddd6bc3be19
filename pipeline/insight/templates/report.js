"use strict";
// The map, and the galleries of photographs. Names are inserted as text (textContent), never as markup.
const data = JSON.parse(document.getElementById("data").textContent);
const count = data.path.length, PER_ROW = 16, PER_SHEET = 256, MOST = 300;
const $ = (id) => document.getElementById(id), number = (value) => value.toLocaleString("en");
// Two layers: the points, and above them what follows the pointer, so that pointing does not redraw all points.
const [canvas, above] = document.querySelectorAll("#map canvas"), tip = $("tip");
const pen = canvas.getContext("2d"), marker = above.getContext("2d");
const shownClasses = new Set(data.classes.keys());
const selected = new Set();
let view = {x: 0, y: 0, zoom: 1}, focus = -1, box = null, visible = [], groups = [];
const scheduled = new Set();

function element(tag, text, className) {
  const made = document.createElement(tag);
  if (text !== undefined) made.textContent = text;
  if (className) made.className = className;
  return made;
}

function thumb(i) {
  const cell = data.cell[i], made = element("span", undefined, "thumb");
  made.style.width = made.style.height = data.side + "px";
  made.setAttribute("role", "img");
  made.setAttribute("aria-label", "photograph");
  if (cell < 0) { made.classList.add("none"); made.textContent = "not available"; return made; }
  const place = cell % PER_SHEET;
  made.style.backgroundImage = `var(--s${data.side}-${Math.floor(cell / PER_SHEET)})`;
  made.style.backgroundPosition = `-${(place % PER_ROW) * data.side}px -${Math.floor(place / PER_ROW) * data.side}px`;
  return made;
}

function facts(i) {
  const wrong = data.label[i] !== data.predicted[i];
  return `${data.classes[data.label[i]]}${wrong ? ", predicted as " + data.classes[data.predicted[i]] : ""} ` +
    `(${(data.probability[i] / 10).toFixed(1)} %, ${data.splits[data.split[i]]})`;
}

function fill(gallery, images) {
  gallery.replaceChildren(...images.slice(0, MOST).map((i) => {
    const figure = element("figure");
    figure.append(thumb(i), element("div", facts(i)), element("div", data.path[i], "path"));
    return figure;
  }));
  if (images.length > MOST) gallery.append(element("p", `and ${number(images.length - MOST)} more`, "soft"));
}

// Tables: clicking a number or a class opens a gallery.
const dialog = document.querySelector("dialog"), scoredSplit = data.splits.indexOf(data.scored);
const scored = [...data.path.keys()].filter((i) => data.split[i] === scoredSplit);
function open(title, images) {
  $("dialog-title").textContent = `${title} (${number(images.length)})`;
  images.sort((a, b) => data.probability[b] - data.probability[a]);
  fill(dialog.querySelector(".gallery"), images);
  dialog.showModal();
}
document.querySelectorAll("[data-true]").forEach((button) => button.addEventListener("click", () => {
  const [t, p] = [Number(button.dataset.true), Number(button.dataset.predicted)];
  const title = t === p ? `${data.classes[t]}, predicted correctly` : `${data.classes[t]} predicted as ${data.classes[p]}`;
  open(title, scored.filter((i) => data.label[i] === t && data.predicted[i] === p));
}));
document.querySelectorAll("[data-class]").forEach((button) => button.addEventListener("click", () => {
  const c = Number(button.dataset.class);
  open(`Mistakes that involve ${data.classes[c]}`, scored.filter((i) =>
    data.label[i] !== data.predicted[i] && (data.label[i] === c || data.predicted[i] === c)));
}));
$("close").addEventListener("click", () => dialog.close());
dialog.addEventListener("click", (event) => { if (event.target === dialog) dialog.close(); });

// Colours: evenly spaced hues in two lightnesses, both lighter on a dark page.
const dark = matchMedia("(prefers-color-scheme: dark)");
const hue = (c) => `hsl(${Math.round(c * 360 / Math.min(data.classes.length, 12)) % 360} 65% ${(c % 2 ? 42 : 56) + (dark.matches ? 14 : 0)}%)`;
let hues = [];
const colourOf = {
  label: (i) => hues[data.label[i]],
  predicted: (i) => hues[data.predicted[i]],
  mistake: (i) => data.label[i] === data.predicted[i] ? "#8a8f98" : "#e0392b",
};

// A point is drawn at left + across * x, top + down * y, in pixels.
function mapping() {
  const {width, height} = canvas, edge = 0.04, step = (1 - 2 * edge) * view.zoom / 10000;
  return {left: (edge - view.x) * view.zoom * width, across: step * width,
    top: (edge - view.y) * view.zoom * height, down: step * height};
}

function place(i, at = mapping()) {
  return [at.left + at.across * data.x[i], at.top + at.down * data.y[i]];
}

function filter() {
  const split = Number($("split").value);
  visible = [...data.path.keys()].filter((i) =>
    shownClasses.has(data.label[i]) && (split < 0 || data.split[i] === split));
  $("count").textContent = `${number(visible.length)} of ${number(count)} shown`;
  if (focus >= 0 && !visible.includes(focus)) point(-1);
  groupByColour();
}

function updateColours() {
  hues = data.classes.map((_, c) => hue(c));
  $("legend").querySelectorAll("i").forEach((dot, c) => { dot.style.background = hues[c]; });
  groupByColour();
}

function groupByColour() {
  const colour = colourOf[$("colour").value], byColour = new Map();
  for (const i of visible) {
    const key = colour(i);
    if (!byColour.has(key)) byColour.set(key, []);
    byColour.get(key).push(i);
  }
  groups = [...byColour];
  draw();
}

const schedule = (layer) => { if (!scheduled.size) requestAnimationFrame(paint); scheduled.add(layer); };
const draw = () => { schedule(points); schedule(marks); }, mark = () => schedule(marks);

function paint() {
  const layers = [...scheduled], ratio = window.devicePixelRatio || 1, size = canvas.getBoundingClientRect();
  scheduled.clear();
  const [width, height] = [Math.round(size.width * ratio), Math.round(size.height * ratio)];
  for (const each of [canvas, above])
    if (each.width !== width || each.height !== height) [each.width, each.height] = [width, height];
  const radius = ratio * Math.min(7, (count > 3000 ? 2.2 : 3.2) * Math.sqrt(view.zoom));
  for (const layer of layers) layer(radius, ratio);
}

function points(radius, ratio) {
  pen.clearRect(0, 0, canvas.width, canvas.height);
  for (const [colour, members] of groups) {
    pen.fillStyle = colour;
    circles(pen, "fill", members, radius);
  }
  pen.strokeStyle = getComputedStyle(canvas).color;
  pen.lineWidth = 1.5 * ratio;
  circles(pen, "stroke", selected, radius + 2 * ratio);
}

function marks(radius, ratio) {
  marker.clearRect(0, 0, above.width, above.height);
  marker.strokeStyle = getComputedStyle(canvas).color;
  marker.lineWidth = 3 * ratio;
  if (focus >= 0) circles(marker, "stroke", [focus], radius + 4 * ratio);
  marker.lineWidth = ratio;
  marker.setLineDash([5, 4]);
  if (box) marker.strokeRect(box[0], box[1], box[2] - box[0], box[3] - box[1]);
  marker.setLineDash([]);
}

// One path for each circle: a single path of thousands of circles is slower.
function circles(pen, how, members, radius) {
  const at = mapping(), {width, height} = canvas;
  for (const i of members) {
    const [x, y] = place(i, at);
    if (x < -9 || y < -9 || x > width + 9 || y > height + 9) continue;
    pen.beginPath();
    pen.arc(x, y, radius, 0, 7);
    pen[how]();
  }
}

function nearest(x, y, within) {
  const at = mapping();
  let best = -1, least = within * within;
  for (const i of visible) {
    const [px, py] = place(i, at), far = (px - x) ** 2 + (py - y) ** 2;
    if (far < least) [best, least] = [i, far];
  }
  return best;
}

function point(i) {
  if (i === focus) return;
  focus = i;
  tip.hidden = i < 0;
  if (i >= 0) {
    tip.replaceChildren(thumb(i), element("div", facts(i)), element("div", data.path[i], "path"));
    const ratio = canvas.width / canvas.clientWidth, [x, y] = place(i).map((value) => value / ratio);
    tip.style.left = `${Math.max(0, Math.min(x + 14, canvas.clientWidth - tip.offsetWidth))}px`;
    tip.style.top = `${y + 14 + tip.offsetHeight < canvas.clientHeight ? y + 14 : Math.max(0, y - 14 - tip.offsetHeight)}px`;
  }
  mark();
}

function zoom(factor, x = 0.5, y = 0.5) {
  const next = Math.min(60, Math.max(1, view.zoom * factor));
  const keep = (at, start) => start + at / view.zoom - at / next;
  view = bounded({x: keep(x, view.x), y: keep(y, view.y), zoom: next});
  point(-1);
  draw();
}

function bounded({x, y, zoom}) {
  const most = 1 - 1 / zoom;
  return {x: Math.min(most, Math.max(0, x)), y: Math.min(most, Math.max(0, y)), zoom};
}

function list() {
  const chosen = [...selected];
  $("list").hidden = !chosen.length;
  $("chosen").textContent = `${number(chosen.length)} selected`;
  document.querySelector("#list textarea").value = chosen.map((i) => data.path[i]).join("\n");
  fill(document.querySelector("#list .gallery"), chosen);
  draw();
}

function where(event) {
  const size = canvas.getBoundingClientRect(), ratio = canvas.width / size.width;
  return [(event.clientX - size.left) * ratio, (event.clientY - size.top) * ratio];
}

let held = null;
canvas.addEventListener("pointerdown", (event) => {
  const [x, y] = where(event);
  held = {x, y, from: {...view}, moved: false};
  canvas.setPointerCapture(event.pointerId);
});
canvas.addEventListener("pointermove", (event) => {
  const [x, y] = where(event);
  if (!held) { point(nearest(x, y, 14 * (window.devicePixelRatio || 1))); return; }
  held.moved ||= Math.hypot(x - held.x, y - held.y) > 5;
  if (!held.moved) return;
  if ($("select").getAttribute("aria-pressed") === "true") { box = [held.x, held.y, x, y]; mark(); }
  else { view = bounded({zoom: view.zoom, x: held.from.x - (x - held.x) / canvas.width / view.zoom, y: held.from.y - (y - held.y) / canvas.height / view.zoom}); draw(); }
  point(-1);
});
canvas.addEventListener("pointerup", (event) => {
  const [x, y] = where(event);
  if (box) {
    const [left, right] = [box[0], box[2]].sort((a, b) => a - b), [top, bottom] = [box[1], box[3]].sort((a, b) => a - b);
    const at = mapping();
    for (const i of visible) { const [px, py] = place(i, at); if (px >= left && px <= right && py >= top && py <= bottom) selected.add(i); }
    box = null;
    list();
  } else if (held && !held.moved) point(nearest(x, y, (event.pointerType === "touch" ? 28 : 14) * (window.devicePixelRatio || 1)));
  held = null;
});
canvas.addEventListener("pointercancel", () => { held = box = null; draw(); });
canvas.addEventListener("pointerleave", () => { if (!held && document.activeElement !== canvas) point(-1); });
canvas.addEventListener("wheel", (event) => {
  if (document.activeElement !== canvas && !event.ctrlKey) return; // until the map is clicked, the wheel scrolls the page
  event.preventDefault();
  const [x, y] = where(event);
  zoom(event.deltaY < 0 ? 1.25 : 0.8, x / canvas.width, y / canvas.height);
}, {passive: false});

const arrows = {ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1]};
canvas.addEventListener("keydown", (event) => {
  const key = event.key;
  if (key in arrows) step(...arrows[key]);
  else if (key === "+" || key === "=") zoom(1.4);
  else if (key === "-") zoom(1 / 1.4);
  else if (key === "0") zoom(0);
  else if (key === "Enter" || key === " ") { if (focus >= 0) { selected.has(focus) ? selected.delete(focus) : selected.add(focus); list(); } }
  else if (key === "Escape") { selected.clear(); point(-1); list(); }
  else return;
  event.preventDefault();
});

function step(right, down) {
  if (focus < 0) { point(nearest(canvas.width / 2, canvas.height / 2, Infinity)); return; }
  const at = mapping(), [x, y] = place(focus, at);
  let best = -1, least = Infinity;
  for (const i of visible) {
    if (i === focus) continue;
    const [px, py] = place(i, at), along = (px - x) * right + (py - y) * down, aside = Math.abs((px - x) * down) + Math.abs((py - y) * right);
    const far = along + 2 * aside;
    if (along > 0 && far < least) [best, least] = [i, far];
  }
  if (best >= 0) point(best);
}

data.splits.forEach((name, split) => {
  if (data.split.includes(split)) { const option = element("option", name); option.value = split; $("split").append(option); }
});
data.classes.forEach((name, c) => {
  const button = element("button"), dot = element("i");
  button.append(dot, name);
  button.title = data.names[c];
  button.setAttribute("aria-label", data.names[c]);
  button.setAttribute("aria-pressed", "true");
  button.addEventListener("click", () => {
    const on = shownClasses.has(c);
    on ? shownClasses.delete(c) : shownClasses.add(c);
    button.setAttribute("aria-pressed", String(!on));
    filter();
  });
  $("legend").append(button);
});
const every = element("button", "all / none");
every.addEventListener("click", () => {
  const on = shownClasses.size < data.classes.length;
  data.classes.forEach((_, c) => on ? shownClasses.add(c) : shownClasses.delete(c));
  $("legend").querySelectorAll("[aria-pressed]").forEach((button) => button.setAttribute("aria-pressed", String(on)));
  filter();
});
$("legend").append(every);
$("colour").addEventListener("change", groupByColour);
$("split").addEventListener("change", filter);
$("select").addEventListener("click", () => $("select").setAttribute("aria-pressed", String($("select").getAttribute("aria-pressed") !== "true")));
$("in").addEventListener("click", () => zoom(1.5));
$("out").addEventListener("click", () => zoom(1 / 1.5));
$("home").addEventListener("click", () => zoom(0));
$("clear").addEventListener("click", () => { selected.clear(); list(); });
$("copy").addEventListener("click", () => { const text = document.querySelector("#list textarea"); text.select(); document.execCommand("copy"); });
new ResizeObserver(draw).observe(canvas);
dark.addEventListener("change", updateColours);
filter();
updateColours();
