// The look of an inspection's page, light and dark.

export const STYLE = `
:root {
  color-scheme: light dark;
  --page: light-dark(#ffffff, #14171c); --ink: light-dark(#1c2128, #e4e8ee); --faint: light-dark(#5d6773, #98a2b0);
  --line: light-dark(#d9dee5, #323944); --panel: light-dark(#f6f8fa, #1b2027); --accent: light-dark(#0b63b5, #69b1ff);
  --none: light-dark(#eceff3, #262c35); --mark: light-dark(#e8590c, #ff9d4d);
  --low: light-dark(#e8f1fa, #1e2f45); --middle: light-dark(#6ea8d8, #2f74b5); --high: light-dark(#0a3566, #c7e2ff);
  --on-low: light-dark(#1c2128, #e4e8ee); --on-high: light-dark(#ffffff, #10151c);
  --bad: light-dark(#b3261e, #ff8a80); --odd: light-dark(#8a5a00, #f2b84b);
  --c0: light-dark(#0072b2, #4ba3e3); --c1: light-dark(#d55e00, #ff8c42); --c2: light-dark(#008a63, #3ecf9f);
  --c3: light-dark(#b34d8a, #e08bc0); --c4: light-dark(#b07c00, #e9b44c); --c5: light-dark(#6b4fbb, #a98ff0);
  --c6: light-dark(#8c3b3b, #d98080); --c7: light-dark(#5f6b78, #a9b4c0);
}
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 1240px; padding: 24px 24px 64px; background: var(--page); color: var(--ink);
  font: 14px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif; }
h1 { font-size: 22px; margin: 0 0 4px; overflow-wrap: anywhere; }
h2 { font-size: 16px; margin: 36px 0 10px; }
h3 { font-size: 13px; font-weight: 600; margin: 14px 0 4px; color: var(--faint); overflow-wrap: anywhere; }
dl { display: grid; grid-template-columns: max-content minmax(0, 1fr); gap: 2px 16px; margin: 12px 0 0; }
dt { color: var(--faint); } dd { margin: 0; overflow-wrap: anywhere; }
.messages { margin: 16px 0 0; padding: 10px 14px; list-style: none; border-left: 3px solid; background: var(--panel);
  border-radius: 0 6px 6px 0; overflow-wrap: anywhere; max-height: 320px; overflow-y: auto; }
.messages li + li { margin-top: 4px; }
.problems { border-color: var(--bad); } .warnings { border-color: var(--odd); } .notes { border-color: var(--accent); }
.messages b { font-weight: 600; } .problems b { color: var(--bad); } .warnings b { color: var(--odd); }
.bar { display: flex; flex-wrap: wrap; gap: 8px 18px; align-items: center; }
.choices { display: inline-flex; flex-wrap: wrap; border: 1px solid var(--line); border-radius: 6px; overflow: hidden; }
.choices button { border: 0; border-right: 1px solid var(--line); background: none; color: inherit; font: inherit;
  padding: 4px 10px; cursor: pointer; }
.choices button:last-child { border-right: 0; }
.choices button[aria-pressed=true] { background: var(--accent); color: var(--page); }
button:focus-visible, input:focus-visible, rect:focus-visible { outline: 2px solid var(--accent); outline-offset: 1px; }
.scale { display: inline-flex; align-items: center; gap: 8px; color: var(--faint); font-variant-numeric: tabular-nums; }
.ramp { width: 140px; height: 10px; border-radius: 3px;
  background: linear-gradient(to right in oklab, var(--low), var(--middle), var(--high)); }
.map { display: flex; margin-top: 10px; } .map > svg { flex: none; } .cells { overflow-x: auto; padding-bottom: 4px; }
svg { display: block; } svg text { fill: var(--ink); font-size: 11px; } svg .faint { fill: var(--faint); }
svg .on-low { fill: var(--on-low); } svg .on-high { fill: var(--on-high); } .cells text { pointer-events: none; }
.cells rect { cursor: pointer; stroke: transparent; stroke-width: 1; }
.cells rect:hover { stroke: var(--ink); } .cells rect.chosen { stroke: var(--mark); stroke-width: 3; }
.plot { border: 1px solid var(--line); border-radius: 8px; padding: 8px; overflow-x: auto; }
.plot svg { min-width: 680px; } .plot line.grid { stroke: var(--line); } .plot path { fill: none; stroke-width: 2; stroke-linejoin: round; }
.legend { display: flex; flex-wrap: wrap; gap: 4px 14px; margin: 10px 0; padding: 0; list-style: none; }
.legend button { border: 0; background: none; color: inherit; font: inherit; padding: 0; cursor: pointer; text-align: left;
  overflow-wrap: anywhere; }
.swatch { display: inline-block; width: 12px; height: 12px; border-radius: 3px; margin-right: 6px; vertical-align: -1px; }
.hint { color: var(--faint); }
.table { overflow-x: auto; border: 1px solid var(--line); border-radius: 8px; margin-top: 10px; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }
th, td { padding: 3px 10px; text-align: right; white-space: nowrap; border-bottom: 1px solid var(--line); }
tbody tr:last-child td { border-bottom: 0; }
th.text, td.text { text-align: left; } td.name { max-width: 420px; overflow: hidden; text-overflow: ellipsis; }
th { background: var(--panel); font-weight: 600; padding: 0; }
th button { width: 100%; border: 0; background: none; color: inherit; font: inherit; padding: 5px 10px; text-align: inherit;
  cursor: pointer; white-space: nowrap; }
th[aria-sort=ascending] button::after { content: " ↑"; } th[aria-sort=descending] button::after { content: " ↓"; }
tbody tr { cursor: pointer; } tbody tr:hover { background: var(--panel); }
tbody tr.chosen td:first-child { box-shadow: inset 4px 0 var(--own); }
td.bad { color: var(--bad); font-weight: 600; }
input[type=search] { font: inherit; color: inherit; background: var(--page); border: 1px solid var(--line); border-radius: 6px;
  padding: 4px 10px; width: 280px; max-width: 100%; }
#tip { position: fixed; z-index: 1; pointer-events: none; background: var(--ink); color: var(--page); border-radius: 6px;
  padding: 6px 10px; font-size: 12px; max-width: 420px; overflow-wrap: anywhere; white-space: pre-line; }
#tip[hidden] { display: none; }
`
