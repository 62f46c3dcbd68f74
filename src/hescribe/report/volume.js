"use strict";
// Spots of serial sections in space: drag or arrow keys turn, wheel or + and − zoom, 0 starts again.
(() => {
  const place = document.getElementById("view-3d");
  const data = JSON.parse(document.getElementById("page-data").textContent);
  const bytes = (text) => Uint8Array.from(atob(text), (c) => c.charCodeAt(0));
  const make = (tag, attributes = {}, text = "") => {
    const node = document.createElement(tag);
    Object.entries(attributes).forEach(([name, value]) => node.setAttribute(name, value));
    node.textContent = text;
    return node;
  };
  const positions = new Uint16Array(bytes(data.positions).buffer);
  const section = bytes(data.section);
  const count = section.length;
  const half = data.extent_um.map((v) => v / 2);
  const radius = Math.hypot(half[0], half[1], half[2] * data.stretch);
  const genes = data.genes.map((g) => ({ ...g, values: bytes(g.values) }));
  const colours = data.colours.map(([r, g, b]) => `rgb(${r},${g},${b})`);
  const start = { turn: -0.5, tilt: 0.95, zoom: 1, gene: 0, stretch: data.stretch, above: 0 };
  const state = { ...start };

  const canvas = make("canvas", {
    tabindex: "0", role: "img", style: "display:block;width:100%;height:32rem;touch-action:none;cursor:grab;border:1px solid #d9dfe6;border-radius:.6rem",
    "aria-label": "Spots of all sections in space. Arrow keys turn, plus and minus zoom, 0 starts again.",
  });
  const tools = make("div", { class: "tools" });
  const control = (label, node) => {
    const wrap = make("label", { style: "display:inline-flex;align-items:center;gap:.4rem" }, label);
    wrap.append(node);
    tools.append(wrap);
    return node;
  };
  const select = control("Gene", make("select", { id: "volume-gene" }));
  genes.forEach((g, i) => select.append(make("option", { value: i }, g.name)));
  const stretch = control("Height ×", make("input", { id: "volume-stretch", type: "range", min: 0, max: 1, step: 0.01 }));
  const above = control("Hide below", make("input", { id: "volume-above", type: "range", min: 0, max: 255, value: 0 }));
  const shown = control("Sections", make("select", { id: "volume-section" }));
  shown.append(make("option", { value: -1 }, "all"));
  data.sections.forEach((s, i) => shown.append(make("option", { value: i }, s.name)));
  const reset = make("button", { type: "button" }, "Start again");
  tools.append(reset);
  const status = make("p", { class: "note", "aria-live": "polite" });
  place.append(tools, canvas, status);

  const most = Math.max(4 * data.stretch, 4);
  const toSlider = (v) => Math.log(v) / Math.log(most);
  stretch.value = toSlider(state.stretch);

  // x to the right, y to the front, z upwards; seen from a turn about z and a tilt, without perspective
  const projector = (width, height) => {
    const scale = (0.44 * Math.min(width, 1.5 * height) / radius) * state.zoom;
    const [ct, st, ci, si] = [Math.cos(state.turn), Math.sin(state.turn), Math.cos(state.tilt), Math.sin(state.tilt)];
    return (x, y, z) => {
      const [u, v] = [ct * x - st * y, st * x + ct * y];
      const w = z * state.stretch;
      return [width / 2 + scale * u, height / 2 + scale * (v * ci - w * si)];
    };
  };
  const at = (i) => [0, 1, 2].map((k) => (positions[3 * i + k] / 65535 - 0.5) * data.extent_um[k]);

  const layers = data.sections
    .map((s, index) => ({ z: s.z, index, spots: [...section.keys()].filter((i) => section[i] === index) }))
    .sort((a, b) => a.z - b.z);

  const outline = (context, project, index) => {
    const { outline: rings, z } = data.sections[index];
    context.strokeStyle = "#9aa5b1";
    context.fillStyle = "#ffffffb0"; // what lies below shines through, but does not compete
    context.lineWidth = 1;
    rings.forEach((ring) => {
      context.beginPath();
      ring.forEach(([x, y], i) => context[i ? "lineTo" : "moveTo"](...project(x, y, z)));
      context.closePath();
      context.fill();
      context.stroke();
    });
    if (!rings.length) return;
    const [x, y] = rings[0].map(([a, b]) => project(a, b, z)).reduce((a, b) => (b[0] > a[0] ? b : a));
    context.fillStyle = "#52606d";
    context.textAlign = "left";
    context.fillText(data.sections[index].name, x + 6, y + 4);
  };

  const legend = (context, width, height, gene) => {
    const [w, h, x, y] = [160, 10, width - 184, height - 34];
    colours.forEach((c, i) => {
      context.fillStyle = c;
      context.fillRect(x + (i * w) / colours.length, y, w / colours.length + 1, h);
    });
    context.fillStyle = "#1f2933";
    context.textAlign = "left";
    context.fillText(gene.low.toFixed(2), x, y + 22);
    context.textAlign = "right";
    context.fillText(gene.high.toFixed(2), x + w, y + 22);
    context.fillText(`${gene.name}, ${data.unit}`, x + w, y - 6);
  };

  let waiting = false;
  const draw = () => {
    waiting = false;
    const ratio = window.devicePixelRatio || 1;
    const [width, height] = [canvas.clientWidth, canvas.clientHeight];
    canvas.width = width * ratio;
    canvas.height = height * ratio;
    const context = canvas.getContext("2d");
    context.scale(ratio, ratio);
    context.font = "12px system-ui, sans-serif";
    const project = projector(width, height);
    const gene = genes[state.gene];
    const only = Number(shown.value);
    const size = Math.max(1.5, (0.3 * data.pitch_um * 0.44 * Math.min(width, 1.5 * height) * state.zoom) / radius);
    const flat = Math.max(Math.abs(Math.cos(state.tilt)), 0.15);
    let drawn = 0;
    // The eye is always above: from the lowest section to the highest, each over those below
    layers.filter((l) => only < 0 || l.index === only).forEach(({ index, spots }) => {
      outline(context, project, index);
      spots.filter((i) => gene.values[i] >= state.above).forEach((i) => {
        const [x, y] = project(...at(i));
        context.fillStyle = colours[Math.floor((gene.values[i] * colours.length) / 256)];
        context.beginPath();
        context.ellipse(x, y, size, size * flat, 0, 0, 7);
        context.fill();
        drawn += 1;
      });
    });
    legend(context, width, height, gene);
    status.textContent = `${gene.name}: ${drawn.toLocaleString("en")} of ${count.toLocaleString("en")} spots${state.above ? `, those of ${(gene.low + (state.above / 255) * (gene.high - gene.low)).toFixed(2)} or more` : ""}; height drawn × ${state.stretch.toFixed(state.stretch < 10 ? 1 : 0)}.`;
  };
  // Events that come faster than a picture is drawn share one
  const redraw = () => {
    if (!waiting) {
      waiting = true;
      requestAnimationFrame(draw);
    }
  };
  const turn = (dx, dy) => {
    state.turn += dx;
    state.tilt = Math.min(Math.PI / 2, Math.max(0, state.tilt - dy));
  };
  const zoom = (factor) => {
    state.zoom = Math.min(20, Math.max(0.3, state.zoom * factor));
  };

  let held = null;
  canvas.addEventListener("pointerdown", (e) => { held = [e.clientX, e.clientY]; canvas.setPointerCapture(e.pointerId); });
  canvas.addEventListener("pointermove", (e) => {
    if (!held) return;
    turn((e.clientX - held[0]) * -0.008, (e.clientY - held[1]) * -0.008);
    held = [e.clientX, e.clientY];
    redraw();
  });
  ["pointerup", "pointercancel"].forEach((n) => canvas.addEventListener(n, () => { held = null; }));
  canvas.addEventListener("wheel", (e) => { e.preventDefault(); zoom(Math.exp(-e.deltaY * 0.0015)); redraw(); }, { passive: false });
  const again = () => {
    Object.assign(state, start, { gene: state.gene });
    stretch.value = toSlider(state.stretch);
    above.value = 0;
    shown.value = "-1";
  };
  const keyed = {
    ArrowLeft: () => turn(-0.1, 0), ArrowRight: () => turn(0.1, 0), ArrowUp: () => turn(0, 0.1), ArrowDown: () => turn(0, -0.1),
    "+": () => zoom(1.2), "=": () => zoom(1.2), "-": () => zoom(1 / 1.2), 0: again,
  };
  canvas.addEventListener("keydown", (e) => {
    if (keyed[e.key] && !e.ctrlKey && !e.metaKey) { e.preventDefault(); keyed[e.key](); draw(); }
  });
  select.addEventListener("change", () => { state.gene = Number(select.value); draw(); });
  stretch.addEventListener("input", () => { state.stretch = most ** Number(stretch.value); redraw(); });
  above.addEventListener("input", () => { state.above = Number(above.value); draw(); });
  shown.addEventListener("change", draw);
  reset.addEventListener("click", () => { again(); draw(); });
  addEventListener("resize", redraw);
  draw();
  document.documentElement.dataset.ready = "true";
})();
