"use strict";
(() => {
  const PAGE = 25;
  const data = JSON.parse(document.getElementById("gene-data").textContent);
  const all = data.genes.map((_, i) => i);
  const folded = data.genes.map((gene) => gene.toLowerCase());
  const byId = (id) => document.getElementById(id);
  const table = byId("gene-table");
  const state = { find: "", set: -1, column: -2, down: true, start: 0 };
  let shown = all;

  const make = (tag, text, className) => {
    const node = document.createElement(tag);
    if (text !== undefined) node.textContent = text;
    if (className) node.className = className;
    return node;
  };

  const compare = (a, b) => {
    if (state.column === -1) return data.genes[a].localeCompare(data.genes[b], "en", { numeric: true });
    const values = data.columns[state.column].values;
    return values[a] - values[b];
  };

  const arrange = () => {
    const wanted = state.find.trim().toLowerCase();
    const pool = state.set < 0 ? all : data.sets[state.set].rows;
    shown = wanted ? pool.filter((i) => folded[i].includes(wanted)) : pool.slice();
    if (state.column >= -1) {
      const values = state.column >= 0 ? data.columns[state.column].values : null;
      const known = values ? shown.filter((i) => values[i] !== null) : shown;
      const unknown = values ? shown.filter((i) => values[i] === null) : [];
      known.sort((a, b) => (state.down ? compare(b, a) : compare(a, b)));
      shown = known.concat(unknown);
    }
    state.start = 0;
    render();
  };

  const meter = (value) => {
    const outer = make("span", undefined, "meter");
    const inner = make("i");
    inner.style.width = `${Math.max(0, Math.min(1, value)) * 100}%`;
    outer.append(inner);
    outer.setAttribute("aria-hidden", "true");
    return outer;
  };

  const cell = (column, i) => {
    const value = column.values[i];
    const node = make("td", undefined, "n");
    if (value !== null && (column.key === "pcc" || column.key === "expected_pcc")) node.append(meter(value));
    let text = "–";
    if (value !== null) text = column.key === "detected" ? `${Math.round(value * 100)}%` : value.toFixed(2).replace(/^-0\.00$/, "0.00").replace("-", "−");
    node.append(text);
    return node;
  };

  const render = () => {
    const rows = shown.slice(state.start, state.start + PAGE).map((i) => {
      const row = make("tr");
      const name = make("th", data.genes[i]);
      name.scope = "row";
      row.append(name, ...data.columns.map((column) => cell(column, i)));
      return row;
    });
    table.tBodies[0].replaceChildren(...rows);
    const last = Math.min(state.start + PAGE, shown.length);
    const count = shown.length.toLocaleString("en");
    byId("status").textContent = shown.length ? `${state.start + 1}–${last} of ${count}` : "No gene matches";
    byId("previous").disabled = state.start === 0;
    byId("next").disabled = last >= shown.length;
    table.tHead.querySelectorAll("th").forEach((head, i) => {
      const order = state.down ? "descending" : "ascending";
      head.setAttribute("aria-sort", i - 1 === state.column ? order : "none");
    });
  };

  const sortBy = (column) => {
    state.down = state.column === column ? !state.down : column >= 0;
    state.column = column;
    arrange();
  };

  const heading = (title, hint, column) => {
    const node = make("th", undefined, column >= 0 ? "n" : "");
    node.scope = "col";
    const button = make("button", title);
    button.type = "button";
    if (hint) button.title = hint;
    button.addEventListener("click", () => sortBy(column));
    node.append(button);
    return node;
  };

  const quoted = (text) => {
    // A leading sign would be a formula to a spreadsheet
    const safe = /^[=+\-@\t\r]/.test(text) && !/^-?[\d.]+$/.test(text) ? `'${text}` : text;
    return /[",\n\r]/.test(safe) ? `"${safe.replaceAll('"', '""')}"` : safe;
  };

  const download = () => {
    const lines = [["gene", ...data.columns.map((c) => c.key)].join(",")];
    for (const i of shown) {
      lines.push([data.genes[i], ...data.columns.map((c) => c.values[i] ?? "")].map((v) => quoted(String(v))).join(","));
    }
    const link = make("a");
    link.href = URL.createObjectURL(new Blob([lines.join("\n") + "\n"], { type: "text/csv" }));
    link.download = "genes.csv";
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 1000);
  };

  table.tHead.rows[0].append(
    heading("Gene", "", -1),
    ...data.columns.map((column, i) => heading(column.title, column.hint, i)),
  );
  byId("set").append(new Option("All genes", -1), ...data.sets.map((set, i) => new Option(set.title, i)));
  byId("set").addEventListener("change", (event) => { state.set = Number(event.target.value); arrange(); });
  byId("find").addEventListener("input", (event) => { state.find = event.target.value; arrange(); });
  byId("previous").addEventListener("click", () => { state.start -= PAGE; render(); });
  byId("next").addEventListener("click", () => { state.start += PAGE; render(); });
  byId("download").addEventListener("click", download);
  document.querySelectorAll(".tools, .pager").forEach((node) => { node.hidden = false; });
  // The rows come sorted by the first column that tells how well a gene is predicted
  if (data.columns.length) state.column = Math.max(0, data.columns.findIndex((c) => /pcc$/.test(c.key)));
  arrange();

  const enlarged = byId("enlarged");
  document.querySelectorAll(".zoom").forEach((button) => button.addEventListener("click", () => {
    const image = button.querySelector("img");
    enlarged.querySelector("img").src = image.src;
    enlarged.querySelector("img").alt = image.alt;
    enlarged.querySelector("p").textContent = image.alt;
    enlarged.showModal();
  }));
  enlarged.addEventListener("click", (event) => { if (event.target === enlarged) enlarged.close(); });

  // Paper has nothing to click: print what is folded away
  addEventListener("beforeprint", () => document.querySelectorAll("details:not([open])").forEach((d) => {
    d.open = true;
    d.dataset.folded = "";
  }));
  addEventListener("afterprint", () => document.querySelectorAll("details[data-folded]").forEach((d) => {
    d.open = false;
    delete d.dataset.folded;
  }));
  document.documentElement.dataset.ready = "true";
})();
