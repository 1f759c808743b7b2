"use strict";
// The theme is set before the page is drawn; all else waits for it.
const root = document.documentElement;
function stored() { try { return localStorage.getItem("theme"); } catch { return null; } }
if (stored()) root.dataset.theme = stored();

// find returns the sections that have all words, the best first: words in titles count most.
function find(sections, query) {
  const words = query.toLowerCase().split(/\s+/).filter(Boolean);
  if (!words.length) return [];
  const hits = [];
  for (const s of sections) {
    const title = s.title.toLowerCase(), page = s.page.toLowerCase(), text = s.text.toLowerCase();
    let score = 0;
    for (const w of words) {
      const n = (title.includes(w) ? 20 : 0) + (page.includes(w) ? 5 : 0) + Math.min(text.split(w).length - 1, 5);
      if (!n) { score = 0; break; }
      score += n;
    }
    if (score) hits.push({ score, section: s });
  }
  return hits.sort((a, b) => b.score - a.score).slice(0, 20).map((h) => h.section);
}

// excerpt appends the text around the first of the words to an element, with the words marked.
function excerpt(to, text, words) {
  const small = text.toLowerCase();
  const first = Math.min(...words.map((w) => small.indexOf(w)).filter((i) => i >= 0), text.length);
  const start = Math.max(0, first === text.length ? 0 : first - 50);
  const cut = (start ? "…" : "") + text.slice(start, start + 170) + (start + 170 < text.length ? "…" : "");
  const pattern = new RegExp("(" + words.map((w) => w.replace(/[.*+?^${}()|[\]\\]/g, "\\$&")).join("|") + ")", "i");
  cut.split(new RegExp(pattern, "gi")).forEach((piece, i) => {
    to.append(i % 2 ? Object.assign(document.createElement("mark"), { textContent: piece }) : piece);
  });
}

// loadSections loads what the search looks through, once.
let loading;
function loadSections(up) {
  return loading ??= new Promise((done, failed) => {
    const script = document.createElement("script");
    script.src = up + "index.js";
    script.onload = () => done(sections); // eslint-disable-line no-undef
    script.onerror = failed;
    document.head.append(script);
  });
}

document.addEventListener("DOMContentLoaded", () => {
  const up = document.body.dataset.up;
  const menu = document.getElementById("menu"), contents = document.getElementById("contents");
  menu.onclick = () => menu.setAttribute("aria-expanded", contents.classList.toggle("open"));
  document.getElementById("theme").onclick = () => {
    const dark = root.dataset.theme ? root.dataset.theme === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
    root.dataset.theme = dark ? "light" : "dark";
    try { localStorage.setItem("theme", root.dataset.theme); } catch { /* a browser that stores nothing forgets it */ }
  };
  const input = document.getElementById("search"), found = document.getElementById("found");
  async function search() {
    const query = input.value.trim();
    if (!query) { found.hidden = true; return; }
    const all = await loadSections(up);
    if (query !== input.value.trim()) return;
    found.replaceChildren();
    const words = query.toLowerCase().split(/\s+/);
    for (const s of find(all, query)) {
      const a = Object.assign(document.createElement("a"), { href: up + s.link });
      const small = document.createElement("small");
      excerpt(small, s.text, words);
      a.append(s.title === s.page ? s.title : s.page + " › " + s.title, small);
      a.onclick = () => { found.hidden = true; };
      found.append(a);
    }
    if (!found.childElementCount) found.append(Object.assign(document.createElement("p"), { textContent: "Nothing has all of these words." }));
    found.hidden = false;
  }
  input.oninput = search;
  input.onfocus = search;
  input.onkeydown = (e) => { if (e.key === "Enter") found.querySelector("a")?.click(); };
  document.addEventListener("keydown", (e) => {
    const typing = /^(INPUT|TEXTAREA|SELECT)$/.test(document.activeElement.tagName);
    if (e.key === "/" && !typing) { e.preventDefault(); input.focus(); }
    if (e.key === "Escape") { found.hidden = true; input.blur(); }
  });
  document.addEventListener("click", (e) => { if (!found.contains(e.target) && e.target !== input) found.hidden = true; });
  const query = new URLSearchParams(location.search).get("q");
  if (query) { input.value = query; search(); }
});
