// Where one looks, and how one moves: drag, wheel, pinch, keys and buttons.
const CLOSEST = 8; // screen pixels to a slide's

export class Camera {
  constructor(width, height) {
    Object.assign(this, { width, height, x: width / 2, y: height / 2, scale: 1, view: [1, 1] });
  }

  get least() {
    return 0.92 * Math.min(this.view[0] / this.width, this.view[1] / this.height);
  }

  toScreen(x, y) {
    return [(x - this.x) * this.scale + this.view[0] / 2, (y - this.y) * this.scale + this.view[1] / 2];
  }

  toSlide(u, v) {
    return [(u - this.view[0] / 2) / this.scale + this.x, (v - this.view[1] / 2) / this.scale + this.y];
  }

  seen() {
    const [[left, top], [right, bottom]] = [this.toSlide(0, 0), this.toSlide(...this.view)];
    return { left, top, right, bottom };
  }

  whole() {
    this.look(this.width / 2, this.height / 2, this.least);
  }

  // Never out of sight of the slide
  look(x, y, scale) {
    this.scale = Math.max(Math.min(this.least, CLOSEST), Math.min(CLOSEST, scale));
    this.x = Math.max(0, Math.min(this.width, x));
    this.y = Math.max(0, Math.min(this.height, y));
  }

  move(du, dv) {
    this.look(this.x - du / this.scale, this.y - dv / this.scale, this.scale);
  }

  // What is at (u, v) stays there
  zoom(factor, u = this.view[0] / 2, v = this.view[1] / 2) {
    const [x, y] = this.toSlide(u, v);
    this.look(this.x, this.y, this.scale * factor);
    this.look(x - (u - this.view[0] / 2) / this.scale, y - (v - this.view[1] / 2) / this.scale, this.scale);
  }
}

export const listen = (canvas, camera, moved, hovered) => {
  const held = new Map();
  const at = (event) => {
    const box = canvas.getBoundingClientRect();
    return [event.clientX - box.left, event.clientY - box.top];
  };
  const middle = () => {
    const points = [...held.values()];
    const [u, v] = [0, 1].map((k) => points.reduce((sum, p) => sum + p[k], 0) / points.length);
    return { u, v, spread: points.length > 1 ? Math.hypot(points[0][0] - points[1][0], points[0][1] - points[1][1]) : 0 };
  };
  canvas.addEventListener("pointerdown", (event) => {
    held.set(event.pointerId, at(event));
    canvas.setPointerCapture(event.pointerId);
    canvas.classList.add("held");
    hovered(null);
  });
  canvas.addEventListener("pointermove", (event) => {
    if (!held.has(event.pointerId)) {
      hovered(at(event));
      return;
    }
    const before = middle();
    held.set(event.pointerId, at(event));
    const now = middle();
    camera.move(now.u - before.u, now.v - before.v);
    if (before.spread && now.spread) camera.zoom(now.spread / before.spread, now.u, now.v);
    moved();
  });
  ["pointerup", "pointercancel"].forEach((name) => canvas.addEventListener(name, (event) => {
    held.delete(event.pointerId);
    if (!held.size) canvas.classList.remove("held");
  }));
  canvas.addEventListener("pointerleave", () => hovered(null));
  canvas.addEventListener("wheel", (event) => {
    event.preventDefault();
    const lines = event.deltaMode === 1 ? 30 : 1; // some browsers count in lines
    camera.zoom(Math.exp(-event.deltaY * lines * 0.0018), ...at(event));
    moved();
  }, { passive: false });
  canvas.addEventListener("dblclick", (event) => { camera.zoom(2, ...at(event)); moved(); });
  const step = 60;
  const keyed = {
    ArrowLeft: () => camera.move(step, 0), ArrowRight: () => camera.move(-step, 0),
    ArrowUp: () => camera.move(0, step), ArrowDown: () => camera.move(0, -step),
    "+": () => camera.zoom(1.4), "=": () => camera.zoom(1.4), "-": () => camera.zoom(1 / 1.4), 0: () => camera.whole(),
  };
  const act = (key) => { keyed[key](); moved(); };
  canvas.addEventListener("keydown", (event) => {
    if (keyed[event.key] && !event.ctrlKey && !event.metaKey) { event.preventDefault(); act(event.key); }
  });
  Object.entries({ closer: "+", farther: "-", whole: "0" }).forEach(([id, key]) => {
    document.getElementById(id).addEventListener("click", () => act(key));
  });
};
