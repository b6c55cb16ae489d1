// lowrank diff: shows how two adapters, or two checkpoints, differ.

import type { DiffReport } from '../../index.js'
import { defineCommand, MODEL, required, text, toggle } from '../options.js'
import { EXIT_INTERRUPTED } from '../show/interrupt.js'
import { refusePage, writePage } from '../show/outputs.js'
import { diffReport } from '../show/report-sections.js'
import { firstOf, print, printDocument, say, table, warn } from '../show/terminal.js'
import { withProgress } from './adapter-output.js'

export const diff = defineCommand({
  name: 'diff',
  summary: 'show how two adapters, or two checkpoints, differ',
  about: [
    'For adapters, shows the norms of both changes and the cosine between them.',
    'For checkpoints, shows the relative change of each tensor.',
  ].join('\n'),
  examples: [
    'lowrank diff --a tests/golden/peft/f32 --b tests/golden/peft/bf16',
    'lowrank diff --a tests/golden/peft/f32 --b tests/golden/peft/rslora --html out/diff.html',
  ],
  subject: ['a', 'b'],
  options: {
    a: required(MODEL, 'an adapter folder, or a safetensors checkpoint'),
    b: required(MODEL, 'another one of the same kind'),
    html: text('FILE', 'write a web page in one file: a heat map of the layers'),
    overwrite: toggle('replace the file of --html if it exists'),
    json: toggle('print one JSON document on stdout'),
  },
  async run({ a, b, html, overwrite, json }) {
    const node = await import('../../node.js')
    if (html !== undefined) await refusePage(html, overwrite, 'diff')
    const report = await withProgress((run) => node.diff(a, b, run))
    if (report === undefined) return EXIT_INTERRUPTED
    if (html !== undefined) await writePage(html, diffReport(report, a, b), overwrite)
    if (json) printDocument({ a, b, ...report })
    else print(lines(report))
    if (report.onlyA.length > 0) warn(`only in a: ${firstOf(report.onlyA)}`)
    if (report.onlyB.length > 0) warn(`only in b: ${firstOf(report.onlyB)}`)
    say(`They differ by ${(100 * report.relativeChange).toPrecision(3)} % of a`)
    if (report.topMovers.length > 0) say(`Most: ${report.topMovers.slice(0, 5).join(', ')}`)
    return 0
  },
})

function lines(report: DiffReport): string {
  if (report.kind === 'checkpoints') {
    const changed = report.tensors.filter(({ normDifference }) => normDifference > 0)
    const rows = changed.map(({ name, shape, normA, normDifference, relativeChange }) => [
      ...[name, shape.join('×'), normA, normDifference],
      relativeChange,
    ])
    if (rows.length === 0) return 'All tensors that both have are equal'
    return table([['tensor', 'shape', '‖a‖', '‖b − a‖', '‖b − a‖/‖a‖'], ...rows])
  }
  const rows = report.layers.map((layer) => [
    ...[layer.name, layer.normA, layer.normB, layer.cosine === null ? '–' : layer.cosine.toFixed(3)],
    layer.relativeChange,
  ])
  return table([['layer', '‖ΔA‖', '‖ΔB‖', 'cosine', '‖ΔB − ΔA‖/‖ΔA‖'], ...rows])
}
