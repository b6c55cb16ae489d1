// lowrank extract: makes an adapter from a base and a fine-tuned model.

import { newFolder } from '../../../api/node/command-line.js'
import { counted } from '../../../core/base/errors.js'
import { flags } from '../flags.js'
import { defineCommand } from '../options.js'
import { colors, firstOf, peakRssBytes, print, printDocument, say, table } from '../show/terminal.js'
import { ADAPTER_OUTPUT, withProgress } from './adapter-output.js'

export const extract = defineCommand({
  name: 'extract',
  summary: 'make an adapter from a fine-tuned model',
  about: [
    'Compares a fine-tuned safetensors checkpoint with its base, and writes the closest adapter.',
    'Give --rank. Or give --energy: then lowrank chooses a rank for each weight.',
    'The column "lost" is ‖ΔW − s·B·A‖/‖ΔW‖ of each weight.',
  ].join('\n'),
  examples: [
    'lowrank merge --base models/union-3m --adapter tests/golden/peft/f32 --format safetensors --out out/fine-tuned',
    'lowrank extract --base models/union-3m --fine-tuned out/fine-tuned --rank 8 --out out/extracted',
  ],
  subject: ['fineTuned'],
  options: { ...flags('ExtractOptions'), ...ADAPTER_OUTPUT },
  async run({ out, outDtype, json, ...options }) {
    const node = await import('../../../api/node.js')
    const folder = await newFolder(out)
    const { adapter, ...report } = await withProgress((run) => node.extract({ ...options, ...run }))
    await node.saveAdapter(adapter, folder, { dtype: outDtype === 'keep' ? undefined : outDtype })
    const { layers, error, saved, skipped, missing } = report
    if (json) printDocument({ out, ...report, peakRssBytes: peakRssBytes() })
    else if (layers.length > 0) {
      const rows = layers.map((layer) => [layer.name, layer.rank, layer.norm, layer.relativeChange, layer.error])
      print(table([['weight', 'rank', '‖ΔW‖', '‖ΔW‖/‖W‖', 'lost'], ...rows]))
    }
    if (saved.length > 0) say(`kept whole: ${firstOf(saved)}`)
    if (skipped.length > 0) say(`changed, but left out: ${firstOf(skipped)}`)
    if (missing.length > 0) say(`not in the fine-tuned model: ${firstOf(missing)}`)
    say(
      `Wrote ${colors.bold(out)}: ${counted(layers.length, 'layer')}, ${(100 * error).toPrecision(3)} % of the change is lost`,
    )
    return 0
  },
})
