// The card at the pointer and the panel of the selected task.

function facts(task) {
  const rows = [
    ["images", task.images.toLocaleString("en")],
    ["norm", interval(task.norm)],
    ["head", `${(100 * task.score).toFixed(1)} % (${task.metric})`],
  ];
  if (task.domain !== null) rows.unshift(["domain", task.domainName]);
  return element("dl", {}, ...rows.flatMap(([what, value]) => [element("dt", {}, what), element("dd", {}, value)]));
}

const interval = ([value, low, high]) => (low === null ? digits(value) : `${digits(value)} (${digits(low)} – ${digits(high)})`);

function classes(task, most) {
  if (!task.classes) return element("p.classes", {}, count(task.outputs, "output"));
  const shown = task.classes.slice(0, most);
  const more = task.outputs - shown.length;
  return element("p.classes", {}, `${count(task.outputs, "class", "classes")}: ${shown.join(", ")}${more > 0 ? ` and ${more.toLocaleString("en")} more` : ""}`);
}

function sheet(task) {
  return task.sheet ? element("img.sheet", { src: task.sheet, alt: `Images of ${task.name}` }) : null;
}

function showCard(parts, x, y) {
  const card = byId("card");
  const stage = byId("stage");
  card.replaceChildren(...parts.filter((part) => part !== null));
  card.hidden = false;
  const [w, h] = [card.offsetWidth, card.offsetHeight];
  const right = x + 18 + w < stage.clientWidth;
  card.style.left = `${Math.max(4, right ? x + 18 : x - 18 - w)}px`;
  card.style.top = `${Math.max(4, Math.min(y + 12, stage.clientHeight - h - 4))}px`;
}

function hideCard() {
  byId("card").hidden = true;
}

function taskCard(i, x, y) {
  const task = tasks[i];
  showCard([element("strong", {}, task.name), sheet(task), facts(task), classes(task, 12)], x, y);
}

function showPanel() {
  const panel = byId("panel");
  if (state.selected === null) {
    panel.replaceChildren(
      element("h2", {}, "Pick a task"),
      element("p.hint", {}, "Tasks that are near look alike to the probe: an expert for one is likely to serve the other. Click a task to see its nearest ones."),
      element("p.hint", {}, "On the map only neighbourhoods mean something. The matrix shows every distance."),
      element("p.hint", {}, element("kbd", {}, "/"), " search · ", element("kbd", {}, "←↑↓→"), " from task to task · ", element("kbd", {}, "Enter"), " select · ", element("kbd", {}, "+"), " ", element("kbd", {}, "−"), " ", element("kbd", {}, "0"), " zoom · ", element("kbd", {}, "m"), " map or matrix · ", element("kbd", {}, "Esc"), " clear"),
      element("p.hint", {}, `Distance: ${atlas.distance}. Probe: ${atlas.probe}.`)
    );
    return;
  }
  const task = tasks[state.selected];
  const near = task.near.map(([j, value, low, high]) => {
    const [name, range] = [tasks[j].name, low === null ? null : element("small", {}, `${digits(low)} – ${digits(high)}`)];
    const button = element("button", { type: "button", title: name }, swatch(look(tasks[j])), element("span.name", {}, name), element("span.value", {}, digits(value), range));
    button.addEventListener("click", () => select(j));
    return element("li", {}, button);
  });
  const experts = task.experts.map(([name, score]) =>
    element("li", {}, element("div.row", { title: name }, element("span", {}), element("span.name", {}, name), element("span.value", {}, score === null ? "–" : digits(score))))
  );
  const hasIntervals = task.near.some(([, , low]) => low !== null);
  panel.replaceChildren(
    element("h2", {}, task.name),
    ...[sheet(task)].filter((part) => part !== null),
    facts(task),
    classes(task, Infinity),
    ...(near.length ? [element("h3", {}, "Nearest tasks"), element("ol", { id: "nearest" }, ...near)] : []),
    ...(hasIntervals ? [element("p.hint", {}, "Small type: the 95 % interval of the distance. Few images make tasks look farther apart; the interval corrects for that and may lie below the measured distance.")] : []),
    ...(experts.length ? [element("h3", {}, "Best experts"), element("ol", { id: "experts" }, ...experts)] : [])
  );
  panel.scrollTop = 0;
}
