// lowrank convert: writes an adapter in another format.

import { existsSync } from 'node:fs'
import { counted } from '../../../core/base/errors.js'
import { flags } from '../flags.js'
import { defineCommand, MODEL, required, toggle } from '../options.js'
import { baseOf } from '../run/with-session.js'
import { colors, peakRssBytes, printable, printDocument, say } from '../show/terminal.js'
import { withProgress } from './adapter-output.js'

export const convert = defineCommand({
  name: 'convert',
  summary: 'write an adapter in another format',
  about: [
    'Formats: peft; gguf for llama.cpp, LM Studio and wllama; mlx for mlx-lm.',
    'ADAPTER is a folder of PEFT or mlx-lm. For gguf, the model is needed too: a folder with its config.json. Without --base, it is the base that the adapter names.',
  ].join('\n'),
  examples: [
    'lowrank convert tests/golden/peft/f32 --to gguf --base models/union-3m --out out/adapter.gguf',
    'lowrank convert tests/golden/peft/rslora --to mlx --out out/mlx',
  ],
  subject: ['adapter'],
  options: {
    adapter: required(MODEL, 'adapter: a folder, a file, or an id on the Hub'),
    ...flags('ConvertAdapterOptions'),
    json: toggle('print one JSON document on stdout'),
  },
  async run({ adapter, to, base: named, out, outDtype, json }) {
    const node = await import('../../../api/node.js')
    const base = named ?? (to === 'gguf' ? await namedBase(adapter) : undefined)
    const report = await withProgress((run) => node.convertAdapter(adapter, { to, out, base, outDtype, ...run }))
    if (json) printDocument({ ...report, peakRssBytes: peakRssBytes() })
    for (const note of report.notes) say(`note: ${note}`)
    say(`Wrote ${colors.bold(report.out)}: ${counted(report.layers, 'layer')}, ${report.from} → ${report.to}`)
    return 0
  },
})

/** Returns the base that a PEFT adapter names, if it is on this machine. Adapters in other formats name no base. */
async function namedBase(adapter: string): Promise<string | undefined> {
  const { config } = (await (await import('../../../api/node.js')).loadAdapter(adapter).catch(() => undefined)) ?? {}
  const base = config && baseOf(adapter, config)
  if (base === undefined || !existsSync(base)) return undefined
  say(`The base is ${colors.bold(printable(base))}, as ${adapter} names it`)
  return base
}
