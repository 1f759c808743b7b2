"use strict";
// The page asks the compiler, which divert.js brings along as WebAssembly (docs/site/playground/wasm).
const by = (id) => document.getElementById(id);
const element = (name, text, props = {}) => Object.assign(document.createElement(name), { textContent: text }, props);

async function start() {
  const packed = Uint8Array.from(atob(compiler), (c) => c.charCodeAt(0)); // compiler is that of divert.js
  const stream = new Blob([packed]).stream().pipeThrough(new DecompressionStream("gzip"));
  const go = new Go();
  const { instance } = await WebAssembly.instantiate(await new Response(stream).arrayBuffer(), go.importObject);
  const up = new Promise((done) => { globalThis.ready = done; });
  go.run(instance).then(() => fail(new Error("the compiler has ended; load the page again")));
  await up;
}

function fail(err) { by("state").textContent = "This does not work here: " + err.message; }

function show() {
  const text = by("filter").value;
  const a = JSON.parse(ask(text, Number(by("layer").value), by("strict").checked));
  by("error").hidden = !a.error;
  by("error").textContent = a.error;
  by("tcpdump").hidden = !a.tcpdump;
  by("take").textContent = a.tcpdump;
  by("differences").textContent = (a.notes || []).join(" ");
  by("state").textContent = a.error ? "" : a.constant || "It compiles.";
  by("state").className = a.error ? "" : "good";
  by("answer").hidden = Boolean(a.error);
  if (a.error) return;
  const facts = by("facts");
  facts.replaceChildren();
  const fact = (name, value, code) => {
    const dd = element("dd", "");
    dd.append(code ? element("pre", value) : element("span", value));
    facts.append(element("dt", name), dd);
  };
  fact("normal form", a.normal, true);
  fact(a.tests === 1 ? "program, 1 test" : `program, ${a.tests} tests`, a.listing.trimEnd(), true);
  fact("layers", a.layers.join(", "));
  if (a.object) fact("object string", a.object, true);
  else fact("object string", "None: " + a.noObject);
  if (a.neighbour) {
    fact("for tcpdump", a.neighbour, true);
    if (a.neighbourNotes?.length) facts.lastChild.append(element("span", a.neighbourNotes.join(" ")));
  } else fact("for tcpdump", "None: " + a.noNeighbour);
  fact("WinDivert's driver", a.driver ? "refuses it: " + a.driver : "takes it");
  showPackets();
}

function showPackets() {
  const r = JSON.parse(match());
  by("notes").textContent = [`${r.matches} of ${r.packets} packets match.`,
    r.rows.length < r.packets ? `The first ${r.rows.length} are shown.` : "", ...(r.notes || [])].filter(Boolean).join(" ");
  const body = by("packets").tBodies[0];
  body.replaceChildren();
  for (const row of r.rows) {
    const tr = element("tr", "", { tabIndex: 0, title: "show each test", className: row.match ? "match" : "" });
    const verdict = row.unknown ? "cannot be told: " + row.unknown : row.match ? "✓" : "–";
    for (const cell of [row.number, verdict, row.way, row.text, row.time]) tr.append(element("td", cell));
    tr.onclick = () => steps(tr, row.number);
    tr.onkeydown = (e) => { if (e.key === "Enter") steps(tr, row.number); };
    body.append(tr);
  }
}

// steps shows the tests of a packet in a row below it, or takes that row away.
function steps(tr, number) {
  if (tr.nextSibling?.classList.contains("steps")) { tr.nextSibling.remove(); return; }
  const row = element("tr", "", { className: "steps" }), cell = element("td", "", { colSpan: 5 });
  const lines = JSON.parse(explain(number)).map((s) => `${s.holds ? "✓" : "✗"} ${s.test}    [${s.value}]`);
  cell.append(element("pre", lines.join("\n")));
  row.append(cell);
  tr.after(row);
}

function loaded(err, name) {
  if (err) { by("notes").textContent = `${name}: ${err}`; return; }
  by("source").textContent = name;
  by("samples").hidden = name.endsWith("samples");
  show();
}

async function take(file) { loaded(JSON.parse(load(new Uint8Array(await file.arrayBuffer()))), file.name); }

start().then(() => {
  const parameters = new URLSearchParams(location.hash.slice(1));
  if (parameters.has("filter")) by("filter").value = parameters.get("filter");
  let timer;
  by("filter").oninput = () => { clearTimeout(timer); timer = setTimeout(show, 100); };
  by("layer").onchange = by("strict").onchange = show;
  by("examples").onchange = (e) => { if (e.target.value) { by("filter").value = e.target.value; show(); } };
  by("take").onclick = () => { by("filter").value = by("take").textContent; show(); };
  by("file").onchange = (e) => { if (e.target.files[0]) take(e.target.files[0]); };
  by("samples").onclick = () => loaded(JSON.parse(load()), "18 built-in samples");
  document.addEventListener("dragover", (e) => e.preventDefault());
  document.addEventListener("drop", (e) => {
    e.preventDefault();
    if (e.dataTransfer.files[0]) take(e.dataTransfer.files[0]);
  });
  show();
  if (parameters.has("capture")) { // base64, for links with a capture in them
    const bytes = Uint8Array.from(atob(parameters.get("capture")), (c) => c.charCodeAt(0));
    take(new File([bytes], "the link's capture"));
  }
}).catch(fail);
