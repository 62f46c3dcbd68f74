// The list of genes; only the rows that are seen exist.
const BEYOND = 6; // rows made above and below

export const spoken = (value, digits = 2) => (value === null || !Number.isFinite(value) ? "–" : value.toFixed(digits).replace(/^-(0\.0+)$/, "$1").replace("-", "−"));

export const counted = (count, noun) => `${count.toLocaleString("en")} ${noun}${count === 1 ? "" : "s"}`;

export const make = (tag, text = "", className = "") => {
  const node = document.createElement(tag);
  node.textContent = text; // never as HTML: names come from data
  if (className) node.className = className;
  return node;
};

export class Genes {
  constructor(facts, chosen) {
    const byId = (id) => document.getElementById(id);
    Object.assign(this, { ...facts, chosen, rows: byId("rows"), find: byId("find"), order: byId("order"), current: -1 });
    this.folded = facts.genes.map((gene) => gene.toLowerCase());
    const all = facts.genes.map((_, i) => i);
    const names = new Intl.Collator("en", { numeric: true });
    this.orders = {
      trust: all.slice().sort((a, b) => (facts.expected[b] ?? -2) - (facts.expected[a] ?? -2)),
      name: all.slice().sort((a, b) => names.compare(facts.genes[a], facts.genes[b])),
    };
    this.height = 1.9 * parseFloat(getComputedStyle(document.documentElement).fontSize);
    this.find.addEventListener("input", () => this.arrange());
    this.order.addEventListener("change", () => this.arrange());
    this.rows.addEventListener("scroll", () => this.render());
    this.rows.addEventListener("click", (event) => {
      const row = event.target.closest(".row");
      if (row) this.chosen(Number(row.dataset.gene));
    });
    [this.rows, this.find].forEach((node) => node.addEventListener("keydown", (event) => this.key(event)));
    new ResizeObserver(() => this.render()).observe(this.rows);
    this.arrange();
  }

  get best() {
    return this.orders.trust[0];
  }

  arrange() {
    const wanted = this.find.value.trim().toLowerCase();
    this.shown = this.orders[this.order.value].filter((i) => this.folded[i].includes(wanted));
    // A name typed in full comes first, before those that contain it
    if (wanted) this.shown.sort((a, b) => (this.folded[b] === wanted) - (this.folded[a] === wanted));
    document.getElementById("found").textContent = this.shown.length ? counted(this.shown.length, "gene") : "No gene matches";
    this.rows.firstElementChild.style.height = `${this.shown.length * this.height}px`;
    this.rows.scrollTop = 0;
    this.render();
  }

  render() {
    const first = Math.max(0, Math.floor(this.rows.scrollTop / this.height) - BEYOND);
    const end = Math.min(this.shown.length, Math.ceil((this.rows.scrollTop + this.rows.clientHeight) / this.height) + BEYOND);
    this.rows.firstElementChild.replaceChildren(...this.shown.slice(first, end).map((gene, i) => this.row(gene, first + i)));
  }

  row(gene, place) {
    const [node, meter, bar] = [make("div", "", "row"), make("div", "", "meter"), make("i")];
    const expected = this.expected[gene];
    bar.style.width = `${100 * Math.max(0, Math.min(1, expected ?? 0))}%`;
    meter.append(bar);
    node.append(make("span", this.genes[gene]), meter, make("b", spoken(expected)));
    node.style.top = `${place * this.height}px`;
    node.dataset.gene = gene;
    node.title = this.genes[gene];
    node.setAttribute("role", "option");
    node.setAttribute("aria-selected", gene === this.current);
    return node;
  }

  select(gene) {
    this.current = gene;
    this.render();
  }

  key(event) {
    const step = { ArrowDown: 1, ArrowUp: -1, Enter: 0 }[event.key];
    if (step === undefined || !this.shown.length) return;
    event.preventDefault();
    const at = this.shown.indexOf(this.current);
    const next = at < 0 || event.key === "Enter" && event.target === this.find ? 0 : Math.max(0, Math.min(this.shown.length - 1, at + step));
    const [top, bottom] = [next * this.height, (next + 1) * this.height];
    if (top < this.rows.scrollTop) this.rows.scrollTop = top;
    else if (bottom > this.rows.scrollTop + this.rows.clientHeight) this.rows.scrollTop = bottom - this.rows.clientHeight;
    this.chosen(this.shown[next]);
  }
}
