// The data and small helpers. All text from tasks reaches the page as text nodes, never as HTML.

const atlas = JSON.parse(document.getElementById("atlas-data").textContent);
const tasks = atlas.tasks;
const T = tasks.length;
const byId = (id) => document.getElementById(id);

// The upper triangle, row by row, 16 bits a distance between atlas.low and atlas.high.
const levels = (() => {
  const bytes = Uint8Array.from(atob(atlas.distances), (c) => c.charCodeAt(0));
  const view = new DataView(bytes.buffer);
  return Uint16Array.from({ length: bytes.length / 2 }, (_, i) => view.getUint16(2 * i, true));
})();

function level(i, j) {
  const [a, b] = i < j ? [i, j] : [j, i];
  return levels[a * T - (a * (a + 1)) / 2 + b - a - 1];
}

const distance = (i, j) => (i === j ? 0 : atlas.low + ((atlas.high - atlas.low) * level(i, j)) / 65535);

function digits(x) {
  if (x === 0) return "0";
  if (Math.abs(x) >= 1e6 || Math.abs(x) < 1e-4) return x.toExponential(2);
  return Math.abs(x) >= 100 ? Math.round(x).toLocaleString("en") : x.toPrecision(3);
}
const count = (n, word, words = word + "s") => `${n.toLocaleString("en")} ${n === 1 ? word : words}`;

// element("p.hint", {title: …}, "text", child, …)
function element(what, attributes = {}, ...children) {
  const [tag, ...classes] = what.split(".");
  const made = document.createElement(tag);
  if (classes.length) made.className = classes.join(" ");
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  made.append(...children.filter((child) => child !== null));
  return made;
}

const UNKNOWN = { name: "", colour: "#8a929a", marker: "o" };
function shortName(name, most) {
  const signs = [...name];
  return signs.length <= most ? name : `${signs.slice(0, most >> 1).join("")}…${signs.slice(1 - (most >> 1)).join("")}`;
}

const look = (task) => (task.domain === null ? UNKNOWN : atlas.domains[task.domain]);

// Paths of the markers of task2vec_ext.plot: circle, square, triangle, diamond.
function tracePath(path, marker, x, y, r) {
  if (marker === "s") path.rect(x - 0.88 * r, y - 0.88 * r, 1.76 * r, 1.76 * r);
  else if (marker === "^" || marker === "D") {
    const corners = marker === "^" ? [[0, -1.2], [1.1, 0.8], [-1.1, 0.8]] : [[0, -1.25], [1.25, 0], [0, 1.25], [-1.25, 0]];
    corners.forEach(([dx, dy], i) => (i ? path.lineTo(x + dx * r, y + dy * r) : path.moveTo(x + dx * r, y + dy * r)));
    path.closePath();
  } else {
    path.moveTo(x + r, y);
    path.arc(x, y, r, 0, 2 * Math.PI);
  }
}

function swatch({ colour, marker }) {
  const space = "http://www.w3.org/2000/svg";
  const svg = document.createElementNS(space, "svg");
  const shapes = { s: "M1.5 1.5h9v9h-9z", "^": "M6 1l5 9.5h-10z", D: "M6 .5L11.5 6 6 11.5 .5 6z", o: "M11 6a5 5 0 1 1-10 0a5 5 0 1 1 10 0z" };
  const path = document.createElementNS(space, "path");
  svg.setAttribute("width", 12);
  svg.setAttribute("height", 12);
  svg.setAttribute("aria-hidden", "true");
  path.setAttribute("d", shapes[marker] ?? shapes.o);
  path.setAttribute("fill", colour);
  svg.append(path);
  return svg;
}

// Colours of the theme, as the canvases need them.
let colours = {};
function readColours() {
  const style = getComputedStyle(document.documentElement);
  colours = Object.fromEntries(["ground", "text", "faint", "line", "accent", "outline"].map((name) => [name, style.getPropertyValue(`--${name}`).trim()]));
}
readColours();

// The selected task, the task under the pointer or keyboard, and the filters; changes go through main.js.
const state = { selected: null, hovered: null, domain: null, found: null };
const isLit = (i) => (state.domain === null || tasks[i].domain === state.domain) && (state.found === null || state.found.has(i));
