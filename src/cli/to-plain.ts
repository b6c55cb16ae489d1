// lowrank to-plain: makes plain LoRA of an adapter whose start changed the base weights.

import { defineCommand, required, text, toggle } from './options.js'
import { refuseFolder } from './output.js'
import { ADAPTER, MODEL } from './sources.js'
import { colors, printDocument, say, warn } from './terminal.js'

export const toPlain = defineCommand({
  name: 'to-plain',
  summary: 'make plain LoRA of a PiSSA, OLoRA, LoRA-GA or CorDA adapter',
  about: [
    'Such adapters belong to a base from which their start took a part. The result has twice the rank and belongs to the',
    'base as it is: it can be merged, swapped and combined like any other. Of a checkpoint only adapted weights are read.',
  ].join('\n'),
  examples: ['lowrank to-plain tests/golden/peft/pissa --base models/union-3m --out out/plain'],
  positional: { name: 'ADAPTER', about: 'adapter folder' },
  options: {
    base: text(MODEL, 'the original base, a safetensors checkpoint: enough for pissa and olora'),
    initial: text(ADAPTER, 'or the adapter as it was before training: exact for every start'),
    out: required('DIR', 'folder for the result'),
    json: toggle('print one JSON document on stdout'),
  },
  async run({ base, initial, out, json }, { positional }) {
    const node = await import('../node.js')
    await refuseFolder(out)
    const adapter = await node.loadAdapter(positional)
    const plain = await node.toPlain(adapter, { base, initial })
    await node.saveAdapter(plain, out)
    const { init } = adapter.config
    const layers = plain.parts('linear', 'embedding').map(({ name, rank }) => ({ name, rank }))
    const isApproximate = init.startsWith('pissa-niter') && initial === undefined
    if (json) printDocument({ out, init, layers, isApproximate })
    if (isApproximate) {
      warn(
        `${init} starts from random draws that no file holds, and PEFT draws anew each time it loads such an adapter: ` +
          'the result is as close as that; with --initial it is exact',
      )
    }
    const ranks = [...new Set(layers.map(({ rank }) => rank))].sort((a, b) => a - b).join(', ')
    say(`Wrote ${colors.bold(out)}: ${layers.length} layers of rank ${ranks}`)
    return 0
  },
})
