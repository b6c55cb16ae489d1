// lowrank inspect: what an adapter, a checkpoint or an ONNX model holds.

import { type InspectReport, inspect as inspectPath } from '../node.js'
import { defineCommand, toggle } from './options.js'
import { colors, print, printDocument, table, thousands, warn } from './terminal.js'

export const inspect = defineCommand({
  name: 'inspect',
  summary: 'show what an adapter or a model holds',
  about: [
    'Of an adapter: its configuration, and for each layer shape, scaling and how large the change is.',
    'Of an .onnx model: the layers that an adapter can change. Of a .safetensors file: its tensors.',
  ].join('\n'),
  examples: ['lowrank inspect out/scripture', 'lowrank inspect models/union-3m/onnx/model.onnx'],
  positional: { name: 'PATH', about: 'adapter folder, .safetensors file or .onnx file' },
  options: {
    json: toggle('print one JSON document on stdout'),
  },
  async run({ json }, { positional }) {
    const report = await inspectPath(positional)
    if (json) printDocument({ ...report })
    else print(lines(report).join('\n'))
    if (report.kind === 'adapter') report.warnings.forEach(warn)
    return 0
  },
})

function lines(report: InspectReport): string[] {
  switch (report.kind) {
    case 'adapter':
      return adapterLines(report)
    case 'checkpoint':
      return [
        heading('Checkpoint', `${report.tensors.length} tensors, ${thousands(report.params)} parameters`),
        table([
          ['tensor', 'type', 'shape'],
          ...report.tensors.map(({ name, dtype, shape }) => [name, dtype, shape.join('×')]),
        ]),
      ]
    case 'onnx':
      return [
        heading('ONNX model', `${report.linears.length} linear layers`),
        `inputs   ${report.inputs.join(', ')}`,
        `outputs  ${report.outputs.join(', ')}`,
        '',
        table([
          ['linear layer', 'kind', 'd', 'k'],
          ...report.linears.map(({ name, kind, d, k, isHead }) => [name, isHead ? `${kind}, head` : kind, d, k]),
        ]),
      ]
  }
}

function adapterLines({
  config,
  trainableParams,
  layers,
  replacements,
}: InspectReport & { kind: 'adapter' }): string[] {
  const targets = typeof config.targetModules === 'string' ? config.targetModules : config.targetModules.join(', ')
  const settings: [string, string][] = [
    ['base model', config.baseModel ?? 'not named'],
    ['rank, alpha', `${config.rank}, ${config.alpha}${config.useRslora ? ' (rsLoRA: scaling alpha/√rank)' : ''}`],
    ['targets', targets],
  ]
  return [
    heading('LoRA adapter', `${layers.length} layers, ${thousands(trainableParams)} parameters`),
    ...settings.map(([name, value]) => `${name.padEnd(12)} ${value}`),
    '',
    table([
      ['layer', 'kind', 'd', 'k', 'rank', 'alpha', 'scaling', 'type', '‖A‖', '‖B‖', '‖s·B·A‖'],
      ...layers.map(
        ({ name, kind, hasMagnitude, hasBias, d, k, rank, alpha, scaling, dtype, normA, normB, normDelta }) => [
          name,
          kind + (hasMagnitude ? ', DoRA' : '') + (hasBias ? ', bias' : ''),
          d,
          k,
          rank,
          alpha,
          scaling,
          dtype,
          normA,
          normB,
          normDelta,
        ],
      ),
    ]),
    ...(replacements.length === 0 ? [] : ['', replacementTable(replacements)]),
  ]
}

function replacementTable(replacements: (InspectReport & { kind: 'adapter' })['replacements']): string {
  return table([
    ['replaces', 'rows', 'type', 'shape'],
    ...replacements.map(({ name, rows, dtype, shape }) => [name, rows ?? 'all', dtype, shape.join('×')]),
  ])
}

function heading(kind: string, facts: string): string {
  return `${colors.bold(kind)}: ${facts}`
}
