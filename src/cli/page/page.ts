// An inspection or a comparison as one HTML file that needs nothing else: no library, no request, and a policy that allows only its own script and
// style, so that names from files stay text whatever is in them.

import { createHash } from 'node:crypto'
import { client, type Parts } from './client.js'
import { curvePlot } from './curves.js'
import { type AdapterInspection, type PageData, pageData } from './data.js'
import { drawSvg, figure, makeElement } from './elements.js'
import { drawHead } from './head.js'
import { drawMaps } from './maps.js'
import { drawPlot } from './plot.js'
import { STYLE } from './style.js'
import { drawTable } from './table.js'

/** A command that writes pages. */
export type PageCommand = 'inspect' | 'diff'

/** Marks a page as one of a command's, so that it may be replaced by another. */
export const generatorOf = (command: PageCommand): string => `<meta name="generator" content="lowrank ${command}">`

const PARTS: Parts = { makeElement, drawSvg, figure, drawHead, drawMaps, drawPlot, curvePlot, drawTable }

/** @param title the adapter's path */
export function inspectionPage(report: AdapterInspection, title: string): string {
  return page(pageData(report), title, 'inspect')
}

/** A page of a command. */
export function page(data: PageData, title: string, command: PageCommand): string {
  const parts = Object.entries(PARTS).map(([name, part]) => `${name}: ${part}`)
  const script = `(${client})({ ${parts.join(', ')} })`
  const policy = [
    "default-src 'none'",
    `script-src '${hashOf(script)}'`,
    `style-src '${hashOf(STYLE)}'`,
    "base-uri 'none'",
    "form-action 'none'",
  ]
  return `<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="${policy.join('; ')}">
${generatorOf(command)}
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>${escapeHtml(title)} · lowrank ${command}</title>
<style>${STYLE}</style>
</head>
<body>
<h1>${escapeHtml(title)}</h1>
<div id="head"></div>
<noscript><p>This page draws itself with a script of its own, which is switched off here.</p></noscript>
<main id="main"></main>
<div id="tip" hidden></div>
<script type="application/json" id="data">${escapeJson(JSON.stringify(data))}</script>
<script>${script}</script>
</body>
</html>
`
}

function hashOf(text: string): string {
  return `sha256-${createHash('sha256').update(text).digest('base64')}`
}

function escapeHtml(text: string): string {
  return text.replace(/[&<>"']/g, (char) => `&#${char.charCodeAt(0)};`)
}

/** Nothing in it can end the script element, or begin a comment in it. */
function escapeJson(json: string): string {
  return json.replace(/[<>&]/g, (char) => `\\u${char.charCodeAt(0).toString(16).padStart(4, '0')}`)
}
