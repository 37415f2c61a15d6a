"""Style and script of the comparison page: light and dark, no request to anywhere."""

__all__ = ["SCRIPT", "STYLE"]

STYLE = """
:root { color-scheme: light dark; --back: #f7f6f3; --card: #fff; --ink: #1d1f24;
  --soft: #63676f; --line: #e3e1db;
  --plugin: #0b7a75; --fewer: #b4690e; --skip: #e4e2dc; --part: #8fc3c0; }
@media (prefers-color-scheme: dark) { :root { --back: #131418; --card: #1c1e24; --ink: #eceae5;
  --soft: #a0a4ad;
  --line: #31343c; --plugin: #45c2bb; --fewer: #f0a850; --skip: #363a43; --part: #2b7772; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--back); color: var(--ink);
  font: 15px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "DejaVu Sans", sans-serif; }
main { max-width: 1120px; margin: 0 auto; padding: 40px 24px 64px; }
h1 { font-size: 30px; line-height: 1.2; margin: 0 0 6px; letter-spacing: -.02em; }
h2 { font-size: 19px; margin: 44px 0 14px; letter-spacing: -.01em; }
p { margin: 0 0 10px; } .soft { color: var(--soft); }
code, .name { font-family: ui-monospace, SFMono-Regular, Menlo, "DejaVu Sans Mono", monospace;
  font-size: .92em; }
.cards { display: grid; grid-template-columns: repeat(auto-fit, minmax(300px, 1fr)); gap: 16px;
  margin-top: 28px; }
.card { background: var(--card); border: 1px solid var(--line); border-radius: 12px;
  padding: 18px 20px; }
.card .name { display: flex; font-weight: 600; overflow-wrap: anywhere; }
.key { display: inline-grid; flex: none; place-items: center; width: 22px; height: 22px;
  border-radius: 50%; margin-right: 6px;
  background: var(--plugin); color: var(--card); font: 600 12px/1 system-ui, sans-serif; }
.figures { display: grid; grid-template-columns: repeat(3, auto);
  justify-content: space-between; gap: 10px;
  margin: 14px 0; }
.figures b { display: block; font-size: 23px; line-height: 1.2; letter-spacing: -.02em;
  white-space: nowrap; }
.figures span { color: var(--soft); font-size: 12.5px; }
.strip { display: flex; gap: 2px; margin: 10px 0 4px; height: 14px; }
.strip i { flex: 1; border-radius: 2px; background: var(--skip); }
.strip .c { background: var(--plugin); } .strip .p { background: var(--part); }
.verdict { margin: 8px 0 0; }
.warning { color: var(--fewer); margin: 6px 0 0; }
.wide { overflow-x: auto; background: var(--card); border: 1px solid var(--line);
  border-radius: 12px; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums;
  font-size: 14px; }
th, td { padding: 9px 10px; text-align: right; white-space: nowrap;
  border-top: 1px solid var(--line); }
td small { display: block; font-size: 12px; color: var(--soft); }
th { color: var(--soft); font-weight: 500; border-top: 0; }
th:first-child, td:first-child { text-align: left; }
td:first-child { font-family: ui-monospace, Menlo, "DejaVu Sans Mono", monospace;
  font-size: 13px; white-space: normal; min-width: 150px; }
tr.fewer td { color: var(--soft); } tr.fewer td:first-child { padding-left: 28px; }
.chart { background: var(--card); border: 1px solid var(--line); border-radius: 12px;
  padding: 14px; }
.chart { overflow-x: auto; }
.chart svg { display: block; width: 100%; min-width: 640px; height: auto; }
.chart text { fill: var(--soft); font: 13px system-ui, "DejaVu Sans", sans-serif; }
.chart .axis { stroke: var(--line); stroke-width: 1; }
.chart .plugins { fill: var(--plugin); stroke: var(--plugin); }
.chart .fewer { fill: var(--fewer); stroke: var(--fewer); }
.chart .key-text { fill: var(--card); font-weight: 600; }
.pick { display: flex; flex-wrap: wrap; gap: 8px; align-items: center; margin-bottom: 18px;
  position: sticky; top: 0;
  background: var(--back); padding: 10px 0; z-index: 5; }
.pick label { border: 1px solid var(--line); background: var(--card); border-radius: 999px;
  padding: 5px 14px;
  cursor: pointer; font-size: 13.5px; }
.pick input[type=radio] { position: absolute; opacity: 0; }
.pick label:has(:checked) { border-color: var(--plugin); color: var(--plugin);
  box-shadow: inset 0 0 0 1px var(--plugin); }
.pick label:has(:focus-visible) { outline: 2px solid var(--plugin); outline-offset: 2px; }
.pick .tick { border-radius: 8px; }
.grid { display: grid; grid-template-columns: repeat(auto-fill, minmax(250px, 1fr));
  gap: 22px 18px; }
figure { margin: 0; }
.pair { --cut: 50%; position: relative; aspect-ratio: var(--shape); border-radius: 10px;
  overflow: hidden;
  border: 1px solid var(--line); background: var(--card); }
.pair img { position: absolute; inset: 0; width: 100%; height: 100%; object-fit: contain; }
.pair .arm { display: none; clip-path: inset(0 0 0 var(--cut)); }
.pair .arm.on { display: block; }
.pair::after { content: ""; position: absolute; top: 0; bottom: 0; left: var(--cut);
  width: 2px; margin-left: -1px;
  background: #fff; box-shadow: 0 0 0 1px rgba(0, 0, 0, .35); pointer-events: none; }
.pair input { position: absolute; inset: 0; width: 100%; height: 100%; margin: 0; opacity: 0;
  cursor: ew-resize; }
.pair:has(input:focus-visible) { outline: 2px solid var(--plugin); outline-offset: 2px; }
.pair .tag { position: absolute; bottom: 8px; font-size: 11px; padding: 1px 7px;
  border-radius: 6px; color: #fff;
  background: rgba(20, 20, 24, .62); pointer-events: none; }
.tag.left { left: 8px; } .tag.right { right: 8px; }
.differences .pair { filter: brightness(6); background: #000; isolation: isolate;
  border-color: transparent; }
.differences .pair .arm { clip-path: none; mix-blend-mode: difference; }
.differences .pair::after, .differences .pair .tag { display: none; }
figcaption { font-size: 13.5px; line-height: 1.4; margin-top: 8px; overflow-wrap: anywhere; }
figcaption .strip { height: 7px; margin: 6px 0 2px; }
.only { display: none; } .only.on { display: block; } .strip.only.on { display: flex; }
footer { margin-top: 48px; border-top: 1px solid var(--line); padding-top: 16px;
  font-size: 13.5px; color: var(--soft); }
@media (max-width: 600px) { main { padding: 24px 14px; } }
"""

SCRIPT = """
const show = arm => document.querySelectorAll("[data-arm]").forEach(
  found => found.classList.toggle("on", found.dataset.arm === arm));
document.querySelectorAll("input[name=arm]").forEach(
  found => found.addEventListener("change", () => show(found.value)));
document.querySelectorAll(".pair input").forEach(
  found => found.addEventListener("input",
    () => found.parentElement.style.setProperty("--cut", found.value + "%")));
document.querySelector("#differences")?.addEventListener(
  "change", event => document.body.classList.toggle("differences", event.target.checked));
"""
