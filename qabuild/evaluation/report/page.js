"use strict";

const DATA = JSON.parse(document.getElementById("data").textContent);
const DARK = matchMedia("(prefers-color-scheme: dark)");
const PAGE_SIZE = 25; // changed answers that are shown before "Show more"

// --- plots ----------------------------------------------------------------------------------------------------------

function theme() {
  const style = getComputedStyle(document.documentElement);
  const colour = (name) => style.getPropertyValue(`--${name}`).trim();
  const words = { labelColor: colour("text"), titleColor: colour("text"), labelFontSize: 12, titleFontSize: 12 };
  return {
    background: "transparent",
    font: "system-ui, sans-serif",
    axis: { ...words, gridColor: colour("line"), domainColor: colour("soft"), tickColor: colour("soft") },
    legend: { ...words, labelLimit: 300, symbolStrokeWidth: 2 },
    header: words,
    text: { color: colour("text") },
    view: { stroke: colour("line") },
    range: { category: DATA.colours[DARK.matches ? "dark" : "light"] },
  };
}

async function draw() {
  for (const [id, spec] of Object.entries(DATA.plots)) {
    const options = { actions: false, renderer: "svg", config: theme(), tooltip: { theme: DARK.matches ? "dark" : "light" } };
    await vegaEmbed(`#${id}`, spec, options);
  }
  document.documentElement.dataset.drawn = DARK.matches ? "dark" : "light";
}

// --- table ----------------------------------------------------------------------------------------------------------

function sortable(table) {
  const headings = [...table.tHead.rows[0].cells];
  const value = (row, index) => {
    const text = row.cells[index].textContent.trim();
    return Number.isNaN(parseFloat(text)) ? text : parseFloat(text);
  };
  const compare = (a, b, sign) => {
    if (typeof a !== typeof b) return typeof a === "number" ? -1 : 1; // what has no figure comes last, either way
    return sign * (typeof a === "number" ? a - b : a.localeCompare(b));
  };
  headings.forEach((heading, index) => heading.firstElementChild.addEventListener("click", () => {
    const order = heading.ariaSort === "descending" ? "ascending" : "descending";
    headings.forEach((other) => { other.ariaSort = other === heading ? order : "none"; });
    const rows = [...table.tBodies[0].rows];
    const sign = order === "ascending" ? 1 : -1;
    rows.sort((a, b) => compare(value(a, index), value(b, index), sign));
    table.tBodies[0].append(...rows);
  }));
}

// --- changed answers ------------------------------------------------------------------------------------------------

const KINDS = {
  all: () => true,
  lost: (change) => change.f1_difference < 0,
  gained: (change) => change.f1_difference > 0,
  equal: (change) => change.f1_difference === 0,
};

function element(name, className, ...children) {
  const made = document.createElement(name);
  made.className = className;
  made.append(...children);
  return made;
}

// The context in pieces, each marked as all the answers that it is part of. Offsets count code points, as Python does.
function marked(context, spans) {
  const characters = [...context];
  const ends = new Set([0, characters.length, ...spans.flatMap((span) => [span.begin, span.end])]);
  const cuts = [...ends].sort((a, b) => a - b);
  return cuts.slice(0, -1).map((from, index) => {
    const text = characters.slice(from, cuts[index + 1]).join("");
    const kinds = new Set(spans.filter((span) => span.begin <= from && from < span.end).map((span) => span.kind));
    return kinds.size ? element("mark", [...kinds].join(" "), text) : text;
  });
}

function shown(change, baseline) {
  const asked = DATA.asked[change.id];
  const spans = [
    ...asked.gold.map(([text, begin]) => ({ begin, end: begin + [...text].length, kind: "gold" })),
    { begin: asked.begin, end: asked.end, kind: "baseline" },
    { begin: change.begin, end: change.end, kind: "artifact" },
  ];
  const said = (text) => text || "(no answer)";
  const points = `${change.f1_difference > 0 ? "+" : ""}${change.f1_difference.toFixed(1)} F1`;
  const golds = [...new Set(asked.gold.map(([text]) => text))].join(" / ");
  return element("article", "",
    element("h3", "", asked.question),
    element("p", "verdict",
      element("mark", "baseline", said(asked.answer)), " became ", element("mark", "artifact", said(change.answer)),
      `, ${points}; gold: `, element("mark", "gold", said(golds))),
    element("p", "context", ...marked(asked.context, spans)));
}

function browser(form) {
  const list = document.getElementById("flips");
  const more = document.getElementById("more");
  const count = document.getElementById("count");
  let matching = [];
  form.artifact.append(...Object.entries(DATA.changes).map(([name, changes]) => new Option(`${name} (${changes.length})`, name)));
  const extend = () => {
    const from = list.childElementCount;
    list.append(...matching.slice(from, from + PAGE_SIZE).map(shown));
    more.hidden = list.childElementCount >= matching.length;
  };
  const filter = () => {
    const words = form.text.value.trim().toLowerCase();
    matching = DATA.changes[form.artifact.value].filter((change) => {
      const asked = DATA.asked[change.id];
      const text = `${asked.question} ${asked.context} ${asked.answer} ${change.answer}`.toLowerCase();
      return KINDS[form.kind.value](change) && text.includes(words);
    });
    count.value = `${matching.length} of ${DATA.changes[form.artifact.value].length}`;
    list.replaceChildren();
    extend();
  };
  form.addEventListener("input", filter);
  form.addEventListener("submit", (event) => event.preventDefault());
  more.addEventListener("click", extend);
  filter();
}

sortable(document.getElementById("figures"));
if (document.getElementById("filter")) browser(document.getElementById("filter"));
DARK.addEventListener("change", draw);
draw();
