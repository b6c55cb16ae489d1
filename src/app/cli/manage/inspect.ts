// lowrank inspect: shows what an adapter, a checkpoint or an ONNX model contains.

import type { EmbeddingContents, FitReport, InspectReport } from '../../../api/index.js'
import { counted } from '../../../core/base/errors.js'
import { flags } from '../flags.js'
import { defineCommand, MODEL, required, toggle } from '../options.js'
import { colors, complain, print, printable, printDocument, say, table, thousands, warn } from '../show/terminal.js'

/** The most problems on a terminal. The JSON document has all. */
const MAX_PROBLEMS = 20

export const inspect = defineCommand({
  name: 'inspect',
  summary: 'show what is in an adapter or a model',
  about: [
    'For an adapter: shows its configuration. For each layer, it shows the shape, the scaling, and how much it changes the weight.',
    'For a broken adapter: lists all problems, and exits with 1.',
    'For an .onnx model: lists the layers that an adapter can change. For a safetensors checkpoint: lists its tensors.',
  ].join('\n'),
  examples: [
    'lowrank inspect out/scripture',
    'lowrank inspect out/scripture --base models/union-3m',
    'lowrank inspect models/union-3m/onnx/model.onnx',
  ],
  subject: ['source'],
  options: {
    source: required(MODEL, 'an adapter’s folder, a safetensors checkpoint, an .onnx file, or an id on the Hub'),
    ...flags('InspectOptions'),
    json: toggle('print one JSON document on stdout'),
  },
  async run({ source, base, dtype, json }) {
    const node = await import('../../../api/node.js')
    const report = await node.inspect(source, { base, dtype })
    if (json) printDocument({ ...report })
    else print(lines(report).join('\n'))
    if (report.kind !== 'adapter') return 0
    report.warnings.forEach(warn)
    const problems = problemsOf(report)
    for (const problem of problems.slice(0, MAX_PROBLEMS)) complain('problem', problem)
    if (problems.length > MAX_PROBLEMS) say(`… and ${problems.length - MAX_PROBLEMS} more; --json has them all`)
    return problems.length > 0 ? 1 : 0
  },
})

function lines(report: InspectReport): string[] {
  switch (report.kind) {
    case 'adapter':
      return adapterLines(report)
    case 'checkpoint':
      return [
        heading(
          'Checkpoint',
          `${counted(report.tensors.length, 'tensor')}, ${counted(report.params, 'parameter')}` +
            (report.files.length > 1 ? `, ${counted(report.files.length, 'file')}` : ''),
        ),
        table([
          ['tensor', 'type', 'shape'],
          ...report.tensors.map(({ name, dtype, shape }) => [name, dtype, shape.join('×')]),
        ]),
      ]
    case 'onnx':
      return onnxLines(report)
  }
}

const CONVOLUTIONS =
  'Conv: convolutions of kernel 1, as which some exporters write linear layers. The target all-linear leaves them out, as PEFT’s does.'

type Contents<Kind> = InspectReport & { kind: Kind }

function onnxLines({ graphs, dtypes, linears, embeddings }: Contents<'onnx'>): string[] {
  const isSeveral = graphs.length > 1
  const types = Object.entries(dtypes).map(
    ([name, dtypesOfGraph]) => `${isSeveral ? `${name}: ` : ''}${dtypesOfGraph.join(', ')}`,
  )
  const yes = (is: boolean) => (is ? 'yes' : 'no')
  return [
    heading('ONNX model', `${linears.length} linear layers${isSeveral ? ` in ${graphs.length} graphs` : ''}`),
    ...(types.length > 0 ? [`types    ${printable(types.join('; '))}`] : []),
    ...graphs.flatMap(({ role, inputs, outputs }) => [
      ...(isSeveral ? ['', colors.bold(role)] : []),
      `inputs   ${printable(inputs.join(', '))}`,
      `outputs  ${printable(outputs.join(', '))}`,
    ]),
    '',
    table([
      ['linear layer', ...(isSeveral ? ['graph'] : []), 'form', 'd', 'k', 'run', 'merge', 'train'],
      ...linears.map(({ name, graph, form, layout, d, k, isHead, run, merge, train, problem, branches }) => {
        const beside = branches === 0 ? '' : ` + ${branches} merged beside it`
        const stored = `${form} (${layout})${beside}${isHead ? ', head' : ''}${problem === null ? '' : `: ${problem}`}`
        const able = [yes(run), merge.join(', ') || 'no', yes(train)]
        return [name, ...(isSeveral ? [graph] : []), stored, d, k, ...able]
      }),
    ]),
    ...(linears.some(({ form }) => form === 'Conv') ? ['', CONVOLUTIONS] : []),
    ...(embeddings.length === 0 ? [] : ['', embeddingTable(embeddings, isSeveral)]),
  ]
}

function embeddingTable(embeddings: readonly EmbeddingContents[], isSeveral: boolean): string {
  return table([
    ['embedding', ...(isSeveral ? ['graph'] : []), 'form', 'rows', 'columns', 'merge'],
    ...embeddings.map(({ name, graph, form, layout, vocabulary, features, merge, problem }) => {
      const stored = `${form} (${layout})${problem === null ? '' : `: ${problem}`}`
      return [name, ...(isSeveral ? [graph] : []), stored, vocabulary, features, merge.join(', ')]
    }),
  ])
}

function adapterLines({ config, trainableParams, layers, replacements, fit }: Contents<'adapter'>): string[] {
  return [
    heading('LoRA adapter', `${counted(layers.length, 'layer')}, ${counted(trainableParams, 'parameter')}`),
    ...settingsOf(config).map(([name, value]) => `${name.padEnd(12)} ${printable(value)}`),
    '',
    table([
      ['layer', 'kind', 'd', 'k', 'rank', 'alpha', 'scaling', 'type', '‖A‖', '‖B‖', '‖s·B·A‖', 'eff. rank'],
      ...layers.map((layer) => {
        const { name, d, k, rank, alpha, scaling, dtype, normA, normB, normDelta, effectiveRank } = layer
        const shown = Number.isNaN(effectiveRank) ? 'no number' : effectiveRank.toFixed(1)
        return [name, kindOf(layer), d, k, rank, alpha, scaling, dtype, normA, normB, normDelta, shown]
      }),
    ]),
    ...(replacements.length === 0 ? [] : ['', replacementTable(replacements)]),
    ...(fit === undefined ? [] : ['', ...fitLines(fit)]),
  ]
}

function fitLines({ base, parts, vocabulary, isTied, notes }: FitReport): string[] {
  const fitting = parts.filter(({ problem }) => problem === null)
  const types = [...new Set(fitting.flatMap(({ dtype }) => dtype ?? []))]
  return [
    heading(
      `Fit to ${base}`,
      `${fitting.length} of ${parts.length} parts fit${types.length > 0 ? `, weights in ${types.join(', ')}` : ''}`,
    ),
    ...(vocabulary === null ? [] : [`vocabulary   ${thousands(vocabulary)}${isTied ? ', tied embeddings' : ''}`]),
    ...notes.map((note) => `note         ${printable(note)}`),
  ]
}

function replacementTable(replacements: Contents<'adapter'>['replacements']): string {
  return table([
    ['replaces', 'rows', 'type', 'shape'],
    ...replacements.map(({ name, rows, dtype, shape }) => [name, rows ?? 'all', dtype, shape.join('×')]),
  ])
}

function heading(kind: string, facts: string): string {
  return `${colors.bold(kind)}: ${facts}`
}

/** Lists the problems of the adapter, and then the problems that it has with a base. */
function problemsOf({ problems, fit }: Contents<'adapter'>): string[] {
  const misfits = fit === undefined ? [] : [...fit.problems, ...fit.parts.flatMap(({ problem }) => problem ?? [])]
  return [...problems.map(({ message }) => message), ...misfits]
}

function settingsOf(config: Contents<'adapter'>['config']): [string, string][] {
  const { baseModel, rank, alpha, useRslora, targetModules, targetParameters } = config
  return [
    ['base model', baseModel ?? 'not named'],
    ['rank, alpha', `${rank}, ${alpha}${useRslora ? ' (rsLoRA: scaling alpha/√rank)' : ''}`],
    ['targets', [targetModules, targetParameters].flat().join(', ')],
  ]
}

function kindOf({ kind, experts, hasMagnitude, hasBias }: Contents<'adapter'>['layers'][number]): string {
  const parts = [experts === undefined || experts === 1 ? kind : `${kind}, ${experts} experts`]
  if (hasMagnitude) parts.push('DoRA')
  if (hasBias) parts.push('bias')
  return parts.join(', ')
}
