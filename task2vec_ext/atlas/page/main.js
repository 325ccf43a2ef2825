// Search, keyboard, theme, legend: changes the state and redraws.

const redraw = () => (mapView.redraw(), matrixView.redraw());
const isMap = () => !mapView.canvas.hidden;
const currentView = () => (isMap() ? mapView : matrixView);
const announce = (text) => (byId("status").textContent = text);

function hover(i, x, y) {
  if (i === null) hideCard();
  else taskCard(i, x, y);
  if (i === state.hovered) return;
  state.hovered = i;
  mapView.canvas.classList.toggle("over", i !== null);
  mapView.redraw();
}

function select(i) {
  state.selected = i;
  hover(null);
  if (i !== null) {
    mapView.reveal(tasks[i].x, -tasks[i].y);
    announce(`${tasks[i].name}, ${count(tasks[i].outputs, "class", "classes")}, nearest: ${tasks[i].near.slice(0, 3).map(([j]) => tasks[j].name).join(", ")}`);
  }
  showPanel();
  redraw();
}

function show(map) {
  mapView.canvas.hidden = !map;
  matrixView.canvas.hidden = map;
  byId("ramp").hidden = map;
  byId("show-map").setAttribute("aria-pressed", map);
  byId("show-matrix").setAttribute("aria-pressed", !map);
  hideCard();
  currentView().resize();
}

// Search

const search = byId("search");
const results = byId("results");
const MOST_RESULTS = 12;
let marked = 0;

const plain = (text) => text.normalize("NFKD").replace(/\p{M}/gu, "").toLowerCase();
const haystack = tasks.map((task) => plain([task.name, task.domainName ?? "", ...(task.classes ?? [])].join("\n")));
const names = tasks.map((task) => plain(task.name));

function find() {
  const wanted = plain(search.value.trim());
  const hits = wanted ? [...haystack.keys()].filter((i) => haystack[i].includes(wanted)) : [];
  state.found = wanted ? new Set(hits) : null;
  marked = 0;
  // First names that begin with the text, then names that contain it, then tasks with such a class or domain.
  const rank = (i) => (names[i].startsWith(wanted) ? 0 : names[i].includes(wanted) ? 1 : 2);
  const best = hits.sort((a, b) => rank(a) - rank(b) || a - b).slice(0, MOST_RESULTS);
  results.replaceChildren(
    ...best.map((i, n) => {
      const row = element("li", { role: "option", id: `result-${n}`, "data-task": i }, tasks[i].name, element("small", {}, tasks[i].domainName ?? ""));
      row.addEventListener("pointerdown", (event) => (event.preventDefault(), choose(i)));
      return row;
    })
  );
  if (wanted && !best.length) results.append(element("li", { "aria-disabled": "true" }, "nothing found"));
  results.hidden = !wanted;
  mark(0);
  redraw();
}

function mark(n) {
  const rows = [...results.querySelectorAll("[role=option]")];
  marked = rows.length ? (n + rows.length) % rows.length : 0;
  rows.forEach((row, i) => row.setAttribute("aria-selected", i === marked));
  rows[marked]?.scrollIntoView({ block: "nearest" });
  search.setAttribute("aria-expanded", !results.hidden);
  if (rows.length) search.setAttribute("aria-activedescendant", rows[marked].id);
  else search.removeAttribute("aria-activedescendant");
}

function choose(i) {
  clearSearch();
  select(i);
  currentView().canvas.focus();
}

function clearSearch() {
  search.value = "";
  find();
}

search.addEventListener("input", find);
search.addEventListener("blur", () => (results.hidden = true));
search.addEventListener("focus", () => (results.hidden = !search.value.trim()));
search.addEventListener("keydown", (event) => {
  if (event.key === "ArrowDown") mark(marked + 1);
  else if (event.key === "ArrowUp") mark(marked - 1);
  else if (event.key === "Enter") {
    const row = results.querySelector(`#result-${marked}`);
    if (row) choose(Number(row.dataset.task));
  } else if (event.key === "Escape") {
    clearSearch();
    currentView().canvas.focus();
  } else return;
  event.preventDefault();
  event.stopPropagation();
});

// Keyboard

const ARROWS = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };

function moveOnMap(dx, dy) {
  const from = state.hovered ?? state.selected;
  const next = from === null ? atlas.spread.find(isLit) ?? null : taskTowards(from, dx, dy);
  if (next === null) return;
  mapView.reveal(tasks[next].x, -tasks[next].y);
  hover(next, ...placeOf(next));
  announce(tasks[next].name);
}

document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey || event.target === search) return;
  const onCanvas = event.target.tagName === "CANVAS" || event.target === document.body;
  if (event.key === "/") search.focus();
  else if (event.key === "Escape") (state.domain === null ? null : setDomain(null), select(null));
  else if (event.key === "m") show(!isMap());
  else if (event.key === "+" || event.key === "=") currentView().zoom(1.4);
  else if (event.key === "-") currentView().zoom(1 / 1.4);
  else if (event.key === "0") currentView().fit();
  else if (onCanvas && ARROWS[event.key]) (isMap() ? moveOnMap : moveCell)(...ARROWS[event.key]);
  else if (onCanvas && event.key === "Enter") isMap() ? select(state.hovered ?? state.selected) : selectCell(cell);
  else return;
  event.preventDefault();
});

byId("zoom-in").addEventListener("click", () => currentView().zoom(1.4));
byId("zoom-out").addEventListener("click", () => currentView().zoom(1 / 1.4));
byId("zoom-fit").addEventListener("click", () => currentView().fit());
byId("show-map").addEventListener("click", () => show(true));
byId("show-matrix").addEventListener("click", () => show(false));

// Theme: the system's until the button is used.

const dark = window.matchMedia("(prefers-color-scheme: dark)");
function repaint() {
  readColours();
  redraw();
}
dark.addEventListener("change", repaint);
byId("theme").addEventListener("click", () => {
  const root = document.documentElement;
  const isDark = root.dataset.theme ? root.dataset.theme === "dark" : dark.matches;
  root.dataset.theme = isDark ? "light" : "dark";
  repaint();
});

// Legend: a pressed domain is shown alone.

function setDomain(domain) {
  state.domain = domain;
  byId("domains").querySelectorAll("button").forEach((button, i) => button.setAttribute("aria-pressed", i === domain));
  redraw();
}

byId("domains").append(
  ...atlas.domains.map((domain, i) => {
    const size = tasks.filter((task) => task.domain === i).length;
    const button = element("button", { type: "button", "aria-pressed": "false", title: domain.name }, swatch(domain), element("span", {}, domain.name), element("small", {}, size));
    button.addEventListener("click", () => setDomain(state.domain === i ? null : i));
    return button;
  })
);
byId("legend").open = window.innerWidth > 760;
byId("legend").hidden = atlas.domains.length === 0;
byId("legend").addEventListener("toggle", () => currentView().resize());
byId("title").textContent = atlas.title;
byId("title").title = atlas.title;
byId("summary").textContent = count(T, "task");
byId("ramp-low").textContent = `near ${digits(atlas.low)}`;
byId("ramp-high").textContent = `${digits(atlas.high)} far`;
showPanel();
