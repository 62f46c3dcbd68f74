// Joins the parts: what is looked at, what is drawn, and the address that leads back to it.
import { Genes, counted, make, spoken } from "./genes.js";
import { Camera, listen } from "./map.js";
import { Slide } from "./slide.js";
import { Tiles, range } from "./tiles.js";

const byId = (id) => document.getElementById(id);
const GENES_KEPT = 24;
const HARDLY = 0.1; // expected correlation below which a map is not to be believed

const say = (text, { ofGene = false } = {}) => { // what is said of a gene holds until another is chosen
  byId("notice").textContent = text;
  byId("notice").hidden = !text;
  byId("notice").dataset.ofGene = ofGene;
};
const reply = async (path, options) => {
  const answer = await fetch(path, options);
  if (!answer.ok) throw new Error(`${path}: ${answer.status}`);
  return answer;
};
const numbers = async (path) => new Float32Array(await (await reply(path)).arrayBuffer());

// A gene's values, told as they arrive how far they have come
const stream = async (path, count, signal, progress) => {
  const [bytes, reader] = [new Uint8Array(4 * count), (await reply(path, { signal })).body.getReader()];
  for (let filled = 0; ;) {
    const { done, value } = await reader.read();
    if (done) break;
    bytes.set(value, filled);
    filled += value.length;
    progress(filled / bytes.length);
  }
  return new Float32Array(bytes.buffer);
};

const facts = await (await reply("facts")).json();
const [places, novelty, scales] = await Promise.all(["places", "novelty", "interval_scale"].map((name) => numbers(`tiles/${name}`)));

const canvas = byId("map");
const camera = new Camera(facts.width, facts.height);
const tiles = new Tiles(facts, places, novelty);
const slide = facts.pictures && new Slide(facts, () => redraw(), () => say("Part of the slide cannot be read."));
const state = { gene: -1, values: null, sorted: null, limits: [0, 1], hovered: null };
const kept = new Map();
let [waiting, loading] = [false, null];

const limit = () => (byId("fade").checked ? Number(byId("novel").value) : null);

const draw = () => {
  waiting = false;
  const ratio = window.devicePixelRatio || 1;
  const [width, height] = camera.view;
  canvas.width = Math.round(width * ratio);
  canvas.height = Math.round(height * ratio);
  const context = canvas.getContext("2d", { alpha: false });
  context.scale(ratio, ratio);
  context.fillStyle = "#e9edf1";
  context.fillRect(0, 0, width, height);
  const [[a, b], [c, d]] = [camera.toScreen(0, 0), camera.toScreen(facts.width, facts.height)];
  context.fillStyle = "#fff";
  context.fillRect(a, b, c - a, d - b);
  const complete = slide ? slide.paint(context, camera, ratio) : true;
  context.globalAlpha = byId("opacity").value / 100;
  tiles.paint(context, camera);
  context.globalAlpha = 1;
  if (state.hovered !== null) tiles.outline(context, camera, state.hovered);
  scaleBar();
  document.documentElement.dataset.ready = complete && !loading;
};

// Events that come faster than a picture is drawn share one
const redraw = () => {
  if (!waiting) {
    waiting = true;
    requestAnimationFrame(draw);
  }
};

const scaleBar = () => {
  if (!facts.mpp) return;
  const most = (140 * facts.mpp) / camera.scale;
  const power = 10 ** Math.floor(Math.log10(most));
  const length = [5, 2, 1].map((m) => m * power).find((l) => l <= most);
  const [bar, text] = byId("scale-bar").children;
  bar.style.width = `${(length / facts.mpp) * camera.scale}px`;
  text.textContent = length >= 1000 ? `${length / 1000} mm` : `${Number(length.toPrecision(1))} µm`;
  byId("scale-bar").hidden = false;
};

// What stands at either end of the legend; of a constant one value, not a second that is made up
const ends = () => {
  const { sorted, limits } = state;
  if (sorted && !sorted.length) return ["no value", ""];
  if (sorted && sorted[0] === sorted[sorted.length - 1]) return [`${spoken(sorted[0])} everywhere`, ""];
  const [below, above] = byId("clip").value === "0" ? ["", ""] : ["≤ ", "≥ "];
  return [`${below}${spoken(limits[0])}`, `${above}${spoken(limits[1])}`];
};

const colour = () => {
  if (state.values) state.limits = range(state.sorted, Number(byId("clip").value));
  tiles.show(state.values, state.limits, limit());
  [byId("low").textContent, byId("high").textContent] = ends();
  byId("legend").querySelector("canvas").hidden = !byId("high").textContent;
  redraw();
};

const introduce = (gene) => {
  const [expected, interval] = [facts.expected[gene], facts.interval[gene]];
  document.title = `${facts.genes[gene]} · ${facts.name} · hescribe`;
  byId("gene").querySelector("h2").textContent = facts.genes[gene];
  byId("legend").querySelector("strong").textContent = facts.genes[gene];
  const trust = byId("trust");
  if (expected === null) trust.textContent = `How well this gene is predicted is not known: ${facts.expected.every((e) => e === null) ? "the method was trained without left-out sections" : "no section that was left out could say"}.`;
  else {
    trust.replaceChildren("Expected PCC ", make("b", spoken(expected)));
    if (interval !== null) trust.append(" · 90% interval ", make("b", `±\u00a0${spoken(interval)}`));
  }
  byId("doubt").hidden = expected === null || expected >= HARDLY;
  byId("doubt").textContent = "In sections that were left out, this gene's map hardly followed the measurement.";
};

const load = async (gene) => {
  loading?.abort();
  const own = new AbortController();
  loading = own;
  document.documentElement.dataset.ready = "false";
  const bar = byId("progress");
  const late = setTimeout(() => { bar.hidden = false; }, 150); // most genes are there sooner
  bar.value = 0;
  try {
    const values = kept.get(gene) ?? await stream(`genes/${gene}`, tiles.count, own.signal, (share) => { bar.value = share; });
    kept.delete(gene);
    kept.set(gene, values);
    if (kept.size > GENES_KEPT) kept.delete(kept.keys().next().value);
    if (loading !== own) return;
    Object.assign(state, { values, sorted: values.filter(Number.isFinite).sort() });
    byId("legend").hidden = false;
  } catch (error) {
    if (error.name === "AbortError") return;
    say("The gene could not be read. If the viewer was ended, start it again with 'hescribe view'.", { ofGene: true });
    Object.assign(state, { values: null, sorted: null });
  } finally {
    clearTimeout(late);
    if (loading === own) {
      loading = null;
      bar.hidden = true;
    }
  }
  colour();
  tell();
};

const choose = (gene) => {
  if (byId("notice").dataset.ofGene === "true") say(facts.notice);
  if (gene === state.gene) return;
  state.gene = gene;
  genes.select(gene);
  introduce(gene);
  remember();
  load(gene);
};

const genes = new Genes(facts, choose);

// The tooltip at the pointer: value with its interval, and how familiar the tile is
let pointer = null;
const isUnder = (element, [x, y]) => { // positions on the map, not in the window
  const [box, map] = [element.getBoundingClientRect(), canvas.getBoundingClientRect()];
  return x > box.left - map.left && x < box.right - map.left && y > box.top - map.top && y < box.bottom - map.top;
};
const tell = () => {
  const tip = byId("tooltip");
  const before = state.hovered;
  const found = pointer ? tiles.find(...camera.toSlide(...pointer)) : -1;
  state.hovered = found < 0 ? null : found;
  if (state.hovered !== before) redraw();
  byId("legend").classList.toggle("covering", pointer !== null && isUnder(byId("legend"), pointer));
  tip.hidden = state.hovered === null;
  if (tip.hidden) return;
  const lines = [make("strong", facts.genes[state.gene])];
  const value = state.values ? state.values[found] : NaN;
  const half = (facts.interval[state.gene] ?? NaN) * scales[found];
  if (Number.isFinite(value)) {
    const line = make("div", "", "value");
    line.append(make("b", spoken(value)), Number.isFinite(half) ? ` ± ${spoken(half)}` : "");
    lines.push(line);
    if (Number.isFinite(half)) lines.push(make("div", `90% interval ${spoken(Math.max(0, value - half))} to ${spoken(value + half)}`, "note"));
  } else lines.push(make("div", state.values ? "no value" : "…", "note"));
  if (Number.isFinite(novelty[found])) {
    const novel = novelty[found] > Number(byId("novel").value);
    lines.push(make("div", `Novelty: percentile ${spoken(novelty[found], 0)}${novel ? ", unlike the training tiles" : ""}`, novel ? "novel" : "note"));
  }
  tip.replaceChildren(...lines);
  const [width, height] = [tip.offsetWidth, tip.offsetHeight];
  const left = pointer[0] + 16 + width > camera.view[0] ? pointer[0] - 16 - width : pointer[0] + 16;
  const top = Math.max(4, Math.min(pointer[1] + 16, camera.view[1] - height - 4));
  tip.style.transform = `translate(${Math.max(4, left)}px, ${top}px)`;
};

// The address after "#" says what is looked at
let late = 0;
const remember = () => {
  clearTimeout(late);
  late = setTimeout(() => {
    const words = new URLSearchParams({
      gene: facts.genes[state.gene] ?? "", x: Math.round(camera.x), y: Math.round(camera.y), zoom: Number(camera.scale.toPrecision(4)),
      opacity: byId("opacity").value, clip: byId("clip").value,
    });
    if (byId("fade").checked) words.set("fade", byId("novel").value);
    history.replaceState(null, "", `#${words}`);
  }, 200);
};
const recall = () => {
  const words = new URLSearchParams(location.hash.slice(1));
  const number = (name) => (words.has(name) && Number.isFinite(Number(words.get(name))) ? Number(words.get(name)) : null);
  const [x, y, zoom] = ["x", "y", "zoom"].map(number);
  if (x !== null && y !== null && zoom > 0) camera.look(x, y, zoom);
  else camera.whole();
  if (number("opacity") !== null) byId("opacity").value = number("opacity");
  if ([...byId("clip").options].some((option) => option.value === words.get("clip"))) byId("clip").value = words.get("clip");
  byId("fade").checked = number("fade") !== null;
  if (number("fade") !== null) byId("novel").value = number("fade");
  opacity();
  const gene = words.has("gene") ? facts.genes.indexOf(words.get("gene")) : -1;
  if (gene >= 0 || state.gene < 0) choose(gene >= 0 ? gene : genes.best);
  if (words.get("gene") && gene < 0) say(`This prediction has no gene of the name ${words.get("gene")}.`, { ofGene: true });
  colour();
  tell();
};

const moved = () => { redraw(); remember(); tell(); };
const opacity = () => { byId("opacity-value").textContent = `${byId("opacity").value}%`; };
byId("opacity").addEventListener("input", () => { opacity(); redraw(); remember(); });
["clip", "fade", "novel"].forEach((id) => byId(id).addEventListener("input", () => { colour(); remember(); }));
byId("link").addEventListener("click", async () => {
  const [button, text] = [byId("link"), byId("link").textContent];
  try {
    await navigator.clipboard.writeText(location.href);
    button.textContent = "Copied";
  } catch {
    button.textContent = "Copy the address above";
  }
  setTimeout(() => { button.textContent = text; }, 1500);
});

byId("name").textContent = facts.name;
const about = Object.fromEntries(facts.about);
byId("byline").textContent = [about.method, about.encoder, counted(tiles.count, "tile"), counted(facts.genes.length, "gene")].filter(Boolean).join(" · ");
byId("about").append(...facts.about.flatMap(([name, value]) => [make("dt", name.replaceAll("_", " ")), make("dd", value)]));
byId("remark").textContent = facts.remark;
byId("remark").hidden = !facts.remark;
byId("legend").querySelector(".unit").textContent = facts.unit;
say(facts.notice);
if (!slide) byId("opacity").value = 100; // nothing to be seen below
const swatch = byId("legend").querySelector("canvas").getContext("2d");
facts.colours.forEach((rgb, i) => { swatch.fillStyle = `rgb(${rgb})`; swatch.fillRect(i, 0, 1, 1); });

listen(canvas, camera, moved, (at) => { pointer = at; tell(); });
let begun = false;
new ResizeObserver(() => {
  const fitted = begun && camera.scale <= camera.least * 1.001; // who saw the whole slide goes on seeing it
  camera.view = [canvas.clientWidth, canvas.clientHeight];
  if (!begun) recall();
  else if (fitted) camera.whole();
  begun = true;
  redraw();
}).observe(canvas);
addEventListener("hashchange", recall);
