"use strict";
// The page reads without this script: it adds sorting, a filter, the choice of colours, and folding all runs at once.
const all = (selector, within = document) => [...within.querySelectorAll(selector)];
const one = (selector) => document.querySelector(selector);
for (const each of all(".tools, .filter")) each.hidden = false;

// Colours: the system's, light, dark.
const themes = ["auto", "light", "dark"];
one("#theme").addEventListener("click", ({ currentTarget: button }) => {
  const next = themes[(themes.indexOf(button.dataset.now) + 1) % themes.length];
  if (next === "auto") delete document.documentElement.dataset.theme;
  else document.documentElement.dataset.theme = next;
  button.dataset.now = next;
  button.textContent = `colours: ${next}`;
});

// Sorting: a button in each head; what is unknown stays at the end, equal rows in their order.
function valueOf(row, column) {
  const cell = row.cells[column];
  const text = cell.dataset.value ?? cell.textContent.trim();
  return text !== "" && Number.isFinite(Number(text)) ? Number(text) : text;
}

function compare(a, b) {
  const numbers = typeof a === "number" && typeof b === "number";
  return numbers ? a - b : String(a).localeCompare(String(b), "en", { numeric: true });
}

function sort(table, column, direction) {
  const rows = all("tbody tr", table).map((row) => ({ row, value: valueOf(row, column) }));
  const known = rows.filter(({ value }) => value !== "");
  known.sort((a, b) => direction * compare(a.value, b.value));
  table.tBodies[0].append(...known.map(({ row }) => row), ...rows.filter(({ value }) => value === "").map(({ row }) => row));
}

for (const table of all("table.sortable")) {
  all("thead th", table).forEach((head, column) => {
    const button = document.createElement("button");
    button.type = "button";
    button.append(...head.childNodes);
    head.append(button);
    button.addEventListener("click", () => {
      const up = head.getAttribute("aria-sort") !== "ascending";
      for (const each of all("thead th", table)) each.removeAttribute("aria-sort");
      head.setAttribute("aria-sort", up ? "ascending" : "descending");
      sort(table, column, up ? 1 : -1);
    });
  });
}

// The filter: rows with all of the words, and the runs below that belong to them.
function filter() {
  const words = one("#words").value.toLowerCase().split(/\s+/).filter(Boolean);
  const status = one("#status").value;
  const rows = all("#runs tbody tr");
  for (const row of rows) {
    const text = row.dataset.words.toLowerCase();
    row.hidden = !words.every((word) => text.includes(word)) || (status !== "" && row.dataset.status !== status);
    document.getElementById(row.dataset.run).hidden = row.hidden;
  }
  one("#shown").textContent = `${rows.filter((row) => !row.hidden).length} of ${rows.length} runs`;
}

if (one(".filter")) {
  one("#words").addEventListener("input", filter);
  one("#status").addEventListener("input", filter);
  one(".filter").addEventListener("submit", (event) => event.preventDefault());
  filter(); // a browser may have kept the words
}

// Folding: all at once; the run that a link names; on paper all that are not filtered away.
const runs = all("details.run");
one("#fold")?.addEventListener("click", ({ currentTarget: button }) => {
  const open = button.dataset.open !== "1";
  for (const run of runs) run.open = open;
  button.dataset.open = open ? "1" : "0";
  button.textContent = `${open ? "close" : "open"} all runs`;
});

function unfold() {
  const run = runs.find(({ id }) => `#${id}` === location.hash);
  if (run) {
    run.open = true;
    run.scrollIntoView();
  }
}
addEventListener("hashchange", unfold);
for (const link of all("#runs a")) link.addEventListener("click", () => setTimeout(unfold)); // the same link again
unfold();

let folded = [];
addEventListener("beforeprint", () => {
  folded = runs.filter((run) => !run.open);
  for (const run of folded) run.open = true;
});
addEventListener("afterprint", () => folded.forEach((run) => (run.open = false)));
