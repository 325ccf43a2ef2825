// The map: a marker for each task, names where there is room, lines from the selected task to its nearest ones.

const extent = (values) => {
  const [low, high] = [Math.min(...values), Math.max(...values)];
  return high - low > 1e-6 ? [low, high] : [low - 1, high + 1];
};
const [left, right] = extent(tasks.map((task) => task.x));
const [top, bottom] = extent(tasks.map((task) => -task.y));

const mapView = new View(byId("map"), {
  bounds: { left, top, right, bottom },
  margins: (width) => ({ left: legendRoom(width), right: Math.min(90, width / 8), top: 40, bottom: 40 }),
  largest: 1e5,
  draw: drawMap,
  point: (x, y) => hover(taskAt(x, y), x, y),
  click: (x, y) => select(taskAt(x, y)),
  leave: () => hover(null),
});

const radius = () => Math.max(3, Math.min(7, 90 / Math.sqrt(T))) * Math.min(2, Math.max(1, Math.sqrt(mapView.scale / 600)));
const placeOf = (i) => mapView.toScreen(tasks[i].x, -tasks[i].y);

function taskAt(x, y) {
  let nearest = null;
  let least = (radius() + 6) ** 2;
  for (let i = 0; i < T; i++) {
    const [px, py] = placeOf(i);
    const squared = (px - x) ** 2 + (py - y) ** 2;
    if (squared < least && isLit(i)) [nearest, least] = [i, squared];
  }
  return nearest;
}

// The next task in a direction: near, and not far off to the side.
function taskTowards(i, dx, dy) {
  const [x, y] = placeOf(i);
  let [best, least] = [i, Infinity];
  for (let j = 0; j < T; j++) {
    const [px, py] = placeOf(j);
    const along = (px - x) * dx + (py - y) * dy;
    const aside = Math.abs((px - x) * dy) + Math.abs((py - y) * dx);
    if (j !== i && isLit(j) && along > 0 && aside <= 2 * along && along + 2 * aside < least) [best, least] = [j, along + 2 * aside];
  }
  return best;
}

function drawMap(context, view) {
  const r = radius();
  const inView = (x, y) => x > -r && y > -r && x < view.width + r && y < view.height + r;
  if (state.selected !== null) drawLinks(context);
  // One path for each look and brightness: 1,500 tasks are a few dozen calls.
  const layers = new Map();
  for (let i = 0; i < T; i++) {
    const [x, y] = placeOf(i);
    if (!inView(x, y)) continue;
    const { colour, marker } = look(tasks[i]);
    const key = `${isLit(i) ? 1 : 0}${colour}${marker}`;
    if (!layers.has(key)) layers.set(key, { path: new Path2D(), colour, lit: isLit(i) });
    tracePath(layers.get(key).path, marker, x, y, r);
  }
  context.lineWidth = r / 8;
  context.strokeStyle = colours.outline;
  for (const { path, colour, lit } of [...layers.values()].sort((a, b) => a.lit - b.lit)) {
    context.globalAlpha = lit ? 1 : 0.12;
    context.fillStyle = colour;
    context.fill(path);
    context.stroke(path);
  }
  context.globalAlpha = 1;
  for (const [i, width] of [[state.hovered, 2], [state.selected, 3]]) {
    if (i === null) continue;
    context.beginPath();
    context.arc(...placeOf(i), r + 4, 0, 2 * Math.PI);
    context.lineWidth = width;
    context.strokeStyle = colours.accent;
    context.stroke();
  }
  drawNames(context, view, r);
}

function drawLinks(context) {
  const near = tasks[state.selected].near;
  const from = placeOf(state.selected);
  context.strokeStyle = colours.accent;
  near.forEach(([j], rank) => {
    context.globalAlpha = 0.85 - (0.6 * rank) / near.length;
    context.lineWidth = rank < 3 ? 2 : 1.2;
    context.beginPath();
    context.moveTo(...from);
    context.lineTo(...placeOf(j));
    context.stroke();
  });
  context.globalAlpha = 1;
}

const CELL = 4; // pixels: side of the cells that are free or taken
const LONGEST = 32; // characters of a name on the map

function drawNames(context, view, r) {
  const [columns, rows] = [Math.ceil(view.width / CELL), Math.ceil(view.height / CELL)];
  const taken = new Uint8Array(columns * rows);
  const cells = (left, top, right, bottom, visit) => {
    for (let row = Math.max(0, Math.floor(top / CELL)); row <= Math.min(rows - 1, Math.floor(bottom / CELL)); row++)
      for (let column = Math.max(0, Math.floor(left / CELL)); column <= Math.min(columns - 1, Math.floor(right / CELL)); column++)
        if (visit(row * columns + column)) return true;
    return false;
  };
  for (let i = 0; i < T; i++) {
    const [x, y] = placeOf(i);
    if (isLit(i)) cells(x - r, y - r, x + r, y + r, (cell) => void (taken[cell] = 1));
  }
  const stage = view.canvas.getBoundingClientRect();
  for (const panel of document.querySelectorAll("#legend, .zoom")) {
    const box = panel.getBoundingClientRect(); // empty where it is hidden
    if (box.width) cells(box.left - stage.left, box.top - stage.top, box.right - stage.left, box.bottom - stage.top, (cell) => void (taken[cell] = 1));
  }
  context.font = "11px system-ui, sans-serif";
  context.textBaseline = "middle";
  context.lineWidth = 3;
  context.lineJoin = "round";
  context.strokeStyle = colours.ground;
  const first = state.selected === null ? [] : [state.selected, ...tasks[state.selected].near.map(([j]) => j)];
  for (const i of new Set([...first, ...atlas.spread])) {
    if (!isLit(i)) continue;
    const [x, y] = placeOf(i);
    if (x < 0 || y < 0 || x > view.width || y > view.height) continue;
    const name = shortName(tasks[i].name, LONGEST);
    const width = (tasks[i].width ??= context.measureText(name).width);
    const [gap, h] = [r + 3, 6];
    const [beside, before, over, under] = [x + gap, x - gap - width, y - gap - h, y + gap + h];
    const places = [[beside, y], [before, y], [x - width / 2, over], [x - width / 2, under], [x, over], [x, under], [x - width, over], [x - width, under]];
    const boxOf = ([left, middle]) => [left, middle - h, left + width, middle + h - 1];
    const isFree = (place) => {
      const box = boxOf(place);
      return box[0] > 1 && box[1] > 1 && box[2] < view.width - 1 && box[3] < view.height - 1 && !cells(...box, (cell) => taken[cell]);
    };
    const place = places.find(isFree) ?? (i === state.selected ? places[0] : null); // the selected task is always named
    if (!place) continue;
    cells(...boxOf(place), (cell) => void (taken[cell] = 1));
    context.fillStyle = i === state.selected ? colours.accent : colours.text;
    context.strokeText(name, ...place);
    context.fillText(name, ...place);
  }
}
