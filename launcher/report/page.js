"use strict";
// The page is complete without this script. It sorts and filters tables, and shows tooltips on marks.
const all = (selector, within = document) => [...within.querySelectorAll(selector)];
const make = (name, text, properties) => Object.assign(document.createElement(name), {textContent: text ?? ""}, properties);
const tables = all(".points"), rows = tables.flatMap(table => [...table.tBodies[0].rows]);
const marks = all(".chart a");
const rowOf = link => document.getElementById(link.getAttribute("href").slice(1));
const marksOf = new Map();
for (const mark of marks) marksOf.set(rowOf(mark), mark);

// Cells that span several rows become one cell per row, so that rows can move.
for (const first of all(".points td[rowspan]")) {
  const {cellIndex, rowSpan} = first;
  first.removeAttribute("rowspan");
  let row = first.parentNode;
  for (let left = rowSpan; left > 1; left--) {
    row = row.nextElementSibling;
    row.insertBefore(first.cloneNode(true), row.cells[cellIndex]);
  }
}

// Sorting: numbers by value, empty cells last.
const key = (row, column) => {
  const text = row.cells[column].textContent.trim();
  return {text, number: /^-?[\d.]+$/.test(text) ? parseFloat(text) : NaN};
};
const compare = (a, b) => isNaN(a.number) || isNaN(b.number)
  ? isNaN(a.number) - isNaN(b.number) || a.text.localeCompare(b.text, "en", {numeric: true}) : a.number - b.number;
// Moves the content of an element into a button.
const pressed = (element, action) => {
  const button = make("button", "", {type: "button"});
  button.append(...element.childNodes);
  element.append(button);
  button.addEventListener("click", action);
  return button;
};
for (const table of tables) for (const head of all("thead th", table)) {
  pressed(head, () => {
    const down = head.getAttribute("aria-sort") === "ascending";
    all("th[aria-sort]", table).forEach(other => other.removeAttribute("aria-sort"));
    head.setAttribute("aria-sort", down ? "descending" : "ascending");
    const keyed = [...table.tBodies[0].rows].map(row => [key(row, head.cellIndex), row]);
    const last = one => one.text === "";
    keyed.sort(([a], [b]) => last(a) - last(b) || (down ? -compare(a, b) : compare(a, b)));
    table.tBodies[0].append(...keyed.map(([, row]) => row));
  });
}

// Filtering: a row must contain every word.
const tools = document.getElementById("tools");
if (rows.length) {
  const words = make("input", "", {type: "search", placeholder: "filter: words that a row must have"});
  words.setAttribute("aria-label", "filter the points");
  const state = make("select");
  state.setAttribute("aria-label", "state");
  state.append(make("option", "all states", {value: ""}));
  for (const name of new Set(rows.map(row => row.cells[0].textContent))) state.append(make("option", name, {value: name}));
  const count = make("output");
  let texts;
  const counted = left => { count.textContent = `${left} of ${rows.length} points`; };
  const filter = () => {
    texts ??= rows.map(row => [...row.cells].map(cell => cell.textContent).join(" ").toLowerCase());
    const wanted = words.value.toLowerCase().split(/\s+/).filter(Boolean);
    let left = 0;
    rows.forEach((row, i) => {
      const show = wanted.every(word => texts[i].includes(word)) && (!state.value || row.cells[0].textContent === state.value);
      row.hidden = !show;
      left += show;
      marksOf.get(row)?.classList.toggle("off", !show);
    });
    counted(left);
  };
  words.addEventListener("input", filter);
  state.addEventListener("input", filter);
  tools.append(words, state, count);
  counted(rows.length);
}

// The tooltip of a mark shows its row and that of its run.
const tip = make("div", "", {id: "tip", hidden: true});
tip.setAttribute("role", "tooltip");
document.body.append(tip);
const pairs = (list, row, skipped) => {
  const heads = row.closest("table").tHead.rows[0].cells;
  [...row.cells].forEach((cell, i) => {
    const name = heads[i].textContent.trim(), text = cell.textContent.trim();
    if (text && !skipped.includes(name)) list.append(make("dt", name), make("dd", text));
  });
};
const hide = () => { tip.hidden = true; all(".on").forEach(one => one.classList.remove("on")); };
const show = mark => {
  hide();
  const row = rowOf(mark), list = make("dl");
  pairs(list, row, []);
  const link = row.querySelector("a[href^='#r']"), run = link && rowOf(link);
  if (run) {
    pairs(list, run, ["job", "queue", "start-up", "measuring", "began", "ended as"]);
    const image = all(".set div", run.closest("tbody")).find(line => line.firstChild.textContent === "image");
    if (image) list.append(make("dt", "image"), make("dd", image.lastChild.textContent.trim()));
  }
  tip.replaceChildren(list);
  tip.hidden = false;
  row.classList.add("on");
  const at = mark.getBoundingClientRect(), width = document.documentElement.clientWidth;
  const left = Math.max(6, Math.min(at.left + 14, width - tip.offsetWidth - 6));
  const below = innerHeight - at.bottom > at.top;
  tip.style.left = `${left + scrollX}px`;
  tip.style.top = `${scrollY + (below ? at.bottom + 8 : at.top - tip.offsetHeight - 8)}px`;
};
const seen = chart => all("g:not(.gone) a", chart);
const reset = chart => {
  all("a", chart).forEach(mark => mark.setAttribute("tabindex", -1));
  seen(chart)[0]?.setAttribute("tabindex", 0);
};

// A name in a legend shows and hides its configuration in all charts.
const curves = all(".legend li").filter(line => line.className).map(line => {
  const chart = line.closest("figure").querySelector(".chart");
  const group = all("g", chart)[[...line.parentNode.children].indexOf(line)];
  return {chart, group, name: line.textContent, button: pressed(line, () => toggle(line.textContent))};
});
const toggle = name => {
  for (const {chart, group, button} of curves.filter(curve => curve.name === name)) {
    button.setAttribute("aria-pressed", !group.classList.toggle("gone"));
    reset(chart);
  }
  hide();
};
for (const {button} of curves) button.setAttribute("aria-pressed", true);
for (const chart of all(".chart")) {
  reset(chart);
  const on = (names, what) => names.forEach(name => chart.addEventListener(name, event => {
    const mark = event.target.closest?.("a");
    if (mark) what(mark, event);
  }));
  on(["pointerover", "focusin"], mark => {
    const title = mark.querySelector("title");
    if (title) {  // a title would be a second tooltip
      mark.setAttribute("aria-label", title.textContent);
      title.remove();
    }
    show(mark);
  });
  on(["pointerout", "focusout"], hide);
  on(["keydown"], (mark, event) => {
    const step = {ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1}[event.key];
    const own = seen(chart);
    const next = event.key === "Home" ? own[0] : event.key === "End" ? own.at(-1) : step && own[own.indexOf(mark) + step];
    if (!next) return;
    event.preventDefault();
    mark.setAttribute("tabindex", -1);
    next.setAttribute("tabindex", 0);
    next.focus();
  });
}
addEventListener("keydown", event => { if (event.key === "Escape") hide(); });
