// lowrank lora-inputs: writes a model whose graph takes .onnx_adapter files of ONNX Runtime.

import { counted } from '../../base/errors.js'
import { flags } from '../flags.js'
import { defineCommand, MODEL, RUNS, required, toggle } from '../options.js'
import { colors, printDocument, say } from '../show/terminal.js'

export const loraInputs = defineCommand({
  name: 'lora-inputs',
  summary: 'let a model take the adapters of ONNX Runtime',
  about: [
    'Writes the model with inputs for A and B beside its linear layers. ONNX Runtime’s own LoraAdapter (C, C++, C#, Python, genai) then runs adapters on it.',
    'Make the adapters with lowrank convert --to onnx-adapter --base OUT. A run without an adapter is a run of the base.',
  ].join('\n'),
  examples: ['lowrank lora-inputs models/union-3m --target-modules q_proj,v_proj --out out/with-inputs'],
  subject: ['model'],
  options: {
    model: required(MODEL, RUNS),
    ...flags('AddLoraInputsOptions'),
    ...flags('LoadModelOptions', 'dtype'),
    json: toggle('print one JSON document on stdout'),
  },
  async run({ model, out, dtype, rank, targetModules, json }) {
    const { addLoraInputs } = await import('../../handoff-entry/node/entry.js')
    const report = await addLoraInputs(model, { out, dtype, rank, targetModules })
    if (json) printDocument({ ...report })
    say(`Wrote ${colors.bold(report.out)}: ${report.graph} has inputs for ${counted(report.modules.length, 'module')}`)
    return 0
  },
})
