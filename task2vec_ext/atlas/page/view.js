// Pixels on the left to leave free for the legend, where there is room.
function legendRoom(width) {
  const legend = byId("legend");
  return legend.open && legend.offsetWidth < width / 3 ? legend.offsetWidth + 20 : 20;
}

// A canvas that pans and zooms. The world is drawn by draw(context, view), at most once a frame.

class View {
  constructor(canvas, { bounds, margins, largest, draw, point, click, leave }) {
    Object.assign(this, { canvas, bounds, margins, largest, callbacks: { draw, point, click, leave } });
    this.context = canvas.getContext("2d");
    this.pointers = new Map();
    this.waiting = false;
    this.fitted = true;
    new ResizeObserver(() => this.resize()).observe(canvas);
    canvas.addEventListener("wheel", (event) => this.wheel(event), { passive: false });
    canvas.addEventListener("pointerdown", (event) => this.down(event));
    canvas.addEventListener("pointermove", (event) => this.move(event));
    canvas.addEventListener("pointerup", (event) => this.up(event));
    canvas.addEventListener("pointercancel", (event) => this.up(event));
    canvas.addEventListener("pointerleave", () => this.callbacks.leave());
  }

  resize() {
    const { clientWidth: width, clientHeight: height } = this.canvas;
    if (!width || !height) return; // hidden
    const ratio = window.devicePixelRatio || 1;
    Object.assign(this, { width, height, ratio });
    this.canvas.width = Math.round(width * ratio);
    this.canvas.height = Math.round(height * ratio);
    if (this.fitted) this.fit();
    else this.redraw();
  }

  fit() {
    if (!this.width) return;
    const { left, top, right, bottom } = this.bounds;
    // In pixels, because margins do not grow with the world.
    const margin = this.margins(this.width, this.height);
    const [w, h] = [this.width - margin.left - margin.right, this.height - margin.top - margin.bottom];
    this.scale = Math.max(1e-6, Math.min(w / (right - left), h / (bottom - top), this.largest));
    this.smallest = this.scale * 0.5;
    this.x = margin.left + w / 2 - (this.scale * (left + right)) / 2;
    this.y = margin.top + h / 2 - (this.scale * (top + bottom)) / 2;
    this.fitted = true;
    this.redraw();
  }

  toScreen(x, y) {
    return [x * this.scale + this.x, y * this.scale + this.y];
  }

  toWorld(x, y) {
    return [(x - this.x) / this.scale, (y - this.y) / this.scale];
  }

  zoom(factor, x = this.width / 2, y = this.height / 2) {
    const scale = Math.min(Math.max(this.scale * factor, this.smallest), this.largest);
    this.x = x - ((x - this.x) * scale) / this.scale;
    this.y = y - ((y - this.y) * scale) / this.scale;
    this.scale = scale;
    this.fitted = false;
    this.redraw();
  }

  pan(dx, dy) {
    this.x += dx;
    this.y += dy;
    this.fitted = false;
    this.redraw();
  }

  // Bring a place of the world into view.
  reveal(x, y) {
    if (!this.width) return;
    const [sx, sy] = this.toScreen(x, y);
    const edge = 40;
    if (sx < edge || sy < edge || sx > this.width - edge || sy > this.height - edge) this.pan(this.width / 2 - sx, this.height / 2 - sy);
  }

  redraw() {
    if (this.waiting) return;
    this.waiting = true;
    requestAnimationFrame(() => {
      this.waiting = false;
      if (!this.width) return;
      this.context.setTransform(this.ratio, 0, 0, this.ratio, 0, 0);
      this.context.clearRect(0, 0, this.width, this.height);
      this.callbacks.draw(this.context, this);
    });
  }

  place(event) {
    const box = this.canvas.getBoundingClientRect();
    return [event.clientX - box.left, event.clientY - box.top];
  }

  wheel(event) {
    event.preventDefault();
    const lines = event.deltaMode === 1 ? 16 : 1;
    this.zoom(Math.exp(-Math.max(-200, Math.min(200, event.deltaY * lines)) * 0.0025), ...this.place(event));
    this.callbacks.point(...this.place(event));
  }

  down(event) {
    this.canvas.setPointerCapture(event.pointerId);
    this.pointers.set(event.pointerId, this.place(event));
    this.travelled = this.pointers.size > 1 ? Infinity : 0; // two fingers never click
  }

  move(event) {
    const place = this.place(event);
    const before = this.pointers.get(event.pointerId);
    if (!before) {
      this.callbacks.point(...place);
      return;
    }
    const other = [...this.pointers].find(([id]) => id !== event.pointerId)?.[1];
    this.pointers.set(event.pointerId, place);
    const apart = (from) => Math.hypot(from[0] - other[0], from[1] - other[1]);
    if (other) {
      this.zoom(apart(place) / Math.max(1, apart(before)), (place[0] + other[0]) / 2, (place[1] + other[1]) / 2);
      return;
    }
    this.travelled += Math.hypot(place[0] - before[0], place[1] - before[1]);
    if (this.travelled > 3) this.pan(place[0] - before[0], place[1] - before[1]);
  }

  up(event) {
    const pressed = this.pointers.delete(event.pointerId);
    if (pressed && event.type === "pointerup" && this.travelled <= 3) this.callbacks.click(...this.place(event));
  }
}
