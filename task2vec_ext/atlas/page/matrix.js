// The matrix: all distances, ordered so that near tasks are neighbours. Dark is near.

const VIRIDIS = ["#440154", "#482878", "#3e4989", "#31688e", "#26828e", "#1f9e89", "#35b779", "#6ece58", "#b5de2b", "#fde725"];
byId("ramp").querySelector("i").style.background = `linear-gradient(to right, ${VIRIDIS.join(", ")})`;

const NAMES = 180; // pixels
const SMALLEST_NAMED = 9; // pixels; smaller cells have no names
const order = atlas.order;
const rowOf = new Int32Array(T);
order.forEach((i, row) => (rowOf[i] = row));

const matrixView = new View(byId("matrix"), {
  bounds: { left: 0, top: 0, right: T, bottom: T },
  // Room for names above and to the left where the cells stay as high as a line.
  margins: (width, height) => {
    const room = Math.min(width - legendRoom(width), height) - NAMES - 50;
    const names = room >= SMALLEST_NAMED * T ? NAMES : 20;
    return { left: legendRoom(width) + names, top: names, right: 50, bottom: 50 };
  },
  largest: 90,
  draw: drawMatrix,
  point: (x, y) => hoverCell(cellAt(x, y), x, y),
  click: (x, y) => selectCell(cellAt(x, y)),
  leave: () => hoverCell(null),
});

let cell = null; // [row, column] under the pointer or the keyboard

function cellAt(x, y) {
  const [column, row] = matrixView.toWorld(x, y).map(Math.floor);
  return row >= 0 && column >= 0 && row < T && column < T ? [row, column] : null;
}

// Made once, when the matrix is first shown.
let pixels = null;
function matrixPixels() {
  if (pixels) return pixels;
  const stops = VIRIDIS.map((hex) => [1, 3, 5].map((at) => parseInt(hex.slice(at, at + 2), 16)));
  const table = Array.from({ length: 256 }, (_, value) => {
    const at = (value / 255) * (stops.length - 1);
    const k = Math.min(stops.length - 2, Math.floor(at));
    const [a, b] = [stops[k], stops[k + 1]];
    return a.map((c, channel) => Math.round(c + (b[channel] - c) * (at - k)));
  });
  pixels = document.createElement("canvas");
  pixels.width = pixels.height = T;
  const context = pixels.getContext("2d");
  const image = context.createImageData(T, T);
  for (let row = 0, at = 0; row < T; row++)
    for (let column = 0; column < T; column++, at += 4) {
      const [red, green, blue] = row === column ? [0, 0, 0] : table[level(order[row], order[column]) >> 8];
      image.data.set([red, green, blue, 255], at);
    }
  context.putImageData(image, 0, 0);
  return pixels;
}

const STRIP = 10; // pixels

function drawMatrix(context, view) {
  const [left, top] = view.toScreen(0, 0);
  const size = T * view.scale;
  context.imageSmoothingEnabled = view.scale < 1;
  context.drawImage(matrixPixels(), left, top, size, size);
  const first = Math.max(0, Math.floor(-Math.min(left, top) / view.scale) - 1);
  for (let row = 0; row < T; row++) {
    const at = row * view.scale;
    const width = Math.max(0.5, view.scale);
    context.fillStyle = look(tasks[order[row]]).colour;
    context.fillRect(left - STRIP - 3, top + at, STRIP, width);
    context.fillRect(left + at, top - STRIP - 3, width, STRIP);
    if (!isLit(order[row])) {
      context.fillStyle = colours.ground;
      context.globalAlpha = 0.6;
      context.fillRect(left, top + at, size, width);
      context.globalAlpha = 1;
    }
  }
  if (view.scale >= SMALLEST_NAMED) drawMatrixNames(context, view, left, top, first);
  const marked = [state.selected === null ? null : rowOf[state.selected], cell?.[0] ?? null];
  marked.forEach((row, i) => {
    if (row === null) return;
    context.strokeStyle = colours.accent;
    context.lineWidth = i ? 1.5 : 2.5;
    context.strokeRect(left, top + row * view.scale, size, view.scale);
  });
  if (cell) context.strokeRect(left + cell[1] * view.scale, top, view.scale, size);
}

// Rows' names on the left, columns' on top: inside the canvas where the matrix goes beyond it.
function drawMatrixNames(context, view, left, top, first) {
  context.font = `${Math.min(12, view.scale * 0.8)}px system-ui, sans-serif`;
  context.textBaseline = "middle";
  context.lineWidth = 3;
  context.lineJoin = "round";
  context.strokeStyle = colours.ground;
  context.fillStyle = colours.text;
  const write = (name, x, y, align) => {
    context.textAlign = align;
    context.strokeText(name, x, y);
    context.fillText(name, x, y);
  };
  for (let row = first; row < T; row++) {
    const name = shortName(tasks[order[row]].name, 26);
    const [x, y] = [left + (row + 0.5) * view.scale, top + (row + 0.5) * view.scale];
    const start = left - STRIP - 8;
    if (y > 0 && y < view.height) start < 60 ? write(name, 6, y, "left") : write(name, start, y, "right");
    if (x > 0 && x < view.width) {
      context.save();
      context.translate(x, Math.max(6, top - STRIP - 8));
      context.rotate(-Math.PI / 2);
      top - STRIP - 8 < 60 ? write(name, -6, 0, "right") : write(name, 0, 0, "left");
      context.restore();
    }
  }
  context.textAlign = "left";
}

function hoverCell(found, x, y) {
  cell = found;
  matrixView.canvas.classList.toggle("over", found !== null);
  matrixView.redraw();
  if (!found) return hideCard();
  const [i, j] = found.map((row) => order[row]);
  const parts = i === j ? [element("strong", {}, tasks[i].name)] : [element("strong", {}, tasks[i].name), element("strong", {}, tasks[j].name), element("p", {}, `distance ${digits(distance(i, j))}`)];
  showCard(parts, x, y);
}

function selectCell(found) {
  select(found ? order[found[0]] : null);
}

function moveCell(dx, dy) {
  const start = cell ?? [state.selected === null ? 0 : rowOf[state.selected], 0];
  const clamp = (v) => Math.max(0, Math.min(T - 1, v));
  const next = cell ? [clamp(start[0] + dy), clamp(start[1] + dx)] : start;
  matrixView.reveal(next[1] + 0.5, next[0] + 0.5);
  const [x, y] = matrixView.toScreen(next[1] + 0.5, next[0] + 0.5);
  hoverCell(next, x, y);
  const [i, j] = next.map((row) => order[row]);
  announce(`${tasks[i].name}, ${tasks[j].name}: distance ${digits(distance(i, j))}`);
}
