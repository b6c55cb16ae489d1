// lowrank convert: an adapter in another format.

import { requireEmptyFolder } from '../../node/command-line.js'
import { flags } from '../flags.js'
import { defineCommand, MODEL, required, toggle } from '../options.js'
import { EXIT_INTERRUPTED } from '../show/interrupt.js'
import { colors, peakRssBytes, printDocument, say } from '../show/terminal.js'
import { withProgress } from './adapter-output.js'

export const convert = defineCommand({
  name: 'convert',
  summary: 'write an adapter in another format',
  about: [
    'Formats: peft; gguf for llama.cpp, LM Studio and wllama; ollama for a folder with such a file and a Modelfile; mlx for mlx-lm; onnx-adapter for the LoRA of ONNX Runtime.',
    'lowrank finds the format of ADAPTER from its content. For gguf and ollama, give the model with --base: a folder with its config.json, or its GGUF file.',
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
  async run({ adapter, to, base, out, outDtype, json }) {
    const node = await import('../../node.js')
    if (to === 'peft' || to === 'mlx' || to === 'ollama') await requireEmptyFolder(out)
    const report = await withProgress((run) => node.convertAdapter(adapter, { to, out, base, outDtype, ...run }))
    if (report === undefined) return EXIT_INTERRUPTED
    if (json) printDocument({ ...report, peakRssBytes: peakRssBytes() })
    for (const note of report.notes) say(`note: ${note}`)
    say(`Wrote ${colors.bold(report.out)}: ${report.layers} layers, ${report.from} → ${report.to}`)
    return 0
  },
})
