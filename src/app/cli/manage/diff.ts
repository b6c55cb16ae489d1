// lowrank diff: shows how two adapters differ.

import { ADAPTER, defineCommand, required, toggle } from '../options.js'
import { firstOf, print, printDocument, say, table, warn } from '../show/terminal.js'
import { withProgress } from './adapter-output.js'

export const diff = defineCommand({
  name: 'diff',
  summary: 'show how two adapters differ',
  about: 'For each layer, shows the norms of both changes and the cosine between them.',
  examples: ['lowrank diff --a tests/golden/peft/f32 --b tests/golden/peft/bf16'],
  subject: ['a', 'b'],
  options: {
    a: required(ADAPTER, 'an adapter: a folder, or an id on the Hub'),
    b: required(ADAPTER, 'another adapter for the same base'),
    json: toggle('print one JSON document on stdout'),
  },
  async run({ a, b, json }) {
    const node = await import('../../../api/node.js')
    const report = await withProgress((run) => node.diff(a, b, run))
    if (json) printDocument({ a, b, ...report })
    else {
      const rows = report.layers.map(({ name, normA, normB, cosine, relativeChange }) => {
        return [name, normA, normB, cosine === null ? '–' : cosine.toFixed(3), relativeChange]
      })
      print(table([['layer', '‖ΔA‖', '‖ΔB‖', 'cosine', '‖ΔB − ΔA‖/‖ΔA‖'], ...rows]))
    }
    if (report.onlyA.length > 0) warn(`only in a: ${firstOf(report.onlyA)}`)
    if (report.onlyB.length > 0) warn(`only in b: ${firstOf(report.onlyB)}`)
    say(`They differ by ${(100 * report.relativeChange).toPrecision(3)} % of a`)
    if (report.topMovers.length > 0) say(`Most: ${report.topMovers.slice(0, 5).join(', ')}`)
    return 0
  },
})
