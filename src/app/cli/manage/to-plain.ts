// lowrank to-plain: makes plain LoRA of an adapter whose initialization changed the base weights.

import { newFolder } from '../../../api/node/command-line.js'
import { counted } from '../../../core/base/errors.js'
import { flags } from '../flags.js'
import { ADAPTER, defineCommand, required, toggle } from '../options.js'
import { colors, printDocument, say } from '../show/terminal.js'

export const toPlain = defineCommand({
  name: 'to-plain',
  summary: 'turn a PiSSA, OLoRA, LoRA-GA or CorDA adapter into plain LoRA',
  about: [
    'Turns a PiSSA, OLoRA, LoRA-GA or CorDA adapter into plain LoRA. Such an adapter works only with a base that was changed before training.',
    'The result works with the original base, and has twice the rank. Give --base or --initial.',
  ].join('\n'),
  examples: ['lowrank to-plain tests/golden/peft/pissa --base models/union-3m --out out/plain'],
  subject: ['adapter'],
  options: {
    adapter: required(ADAPTER, 'adapter: a folder, or an id on the Hub'),
    ...flags('ToPlainOptions'),
    out: required('DIR', 'folder for the result'),
    json: toggle('print one JSON document on stdout'),
  },
  async run({ adapter: source, base, initial, out, json }) {
    const node = await import('../../../api/node.js')
    const folder = await newFolder(out)
    const adapter = await node.loadAdapter(source)
    const plain = await node.toPlain(adapter, { base, initial })
    await node.saveAdapter(plain, folder)
    const { init } = adapter.config
    const layers = plain.parts('linear', 'embedding').map(({ name, rank }) => ({ name, rank }))
    if (json) printDocument({ out, init, layers })
    const ranks = [...new Set(layers.map(({ rank }) => rank))].sort((a, b) => a - b).join(', ')
    say(`Wrote ${colors.bold(out)}: ${counted(layers.length, 'layer')} of rank ${ranks}`)
    return 0
  },
})
