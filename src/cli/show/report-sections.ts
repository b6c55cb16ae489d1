// Turns the reports of inspect and diff into sections of a page.

import { counted } from '../../base/errors.js'
import type { DiffReport, InspectReport } from '../../node.js'
import type { Report, Section, Shown } from '../../report/page.js'
import { thousands } from './terminal.js'

export type AdapterInspection = InspectReport & { kind: 'adapter' }

const INSPECT_COLUMNS: readonly Shown[] = [
  ...['kind', 'd', 'k', 'rank', 'alpha', 'scaling'].map((name): Shown => [name, name]),
  ['dtype', 'type'],
]

const INSPECT_MEASURES: readonly Shown[] = [
  ['normDelta', '‖s·B·A‖'],
  ['effectiveRank', 'effective rank'],
  ['rank99', 'rank for 99 %'],
  ['normA', '‖A‖'],
  ['normB', '‖B‖'],
]

export function inspectionReport(report: AdapterInspection, title: string): Report {
  const { layers, fit } = report
  const fits = new Map(fit?.parts.map((part) => [part.name, part]))
  const fitColumn: Shown[] = fit === undefined ? [] : [['fits', 'fits']]
  return {
    title,
    command: 'inspect',
    sections: [
      { kind: 'facts', facts: factsOf(report) },
      { kind: 'messages', level: 'problem', texts: problemsOf(report) },
      { kind: 'messages', level: 'warning', texts: report.warnings },
      { kind: 'messages', level: 'note', texts: fit?.notes ?? [] },
      {
        kind: 'layers',
        layers: layers.map((layer) => {
          return { ...layer, kind: kindOf(layer), fits: fits.get(layer.name)?.problem === null ? 'yes' : 'no' }
        }),
        columns: [...INSPECT_COLUMNS, ...fitColumn],
        measures: INSPECT_MEASURES,
        spectra: 's·B·A',
      },
    ],
  }
}

/** Lists the problems of the adapter, and then the problems that it has with a base. */
export function problemsOf({ problems, fit }: AdapterInspection): string[] {
  const misfits = fit === undefined ? [] : [...fit.problems, ...fit.parts.flatMap(({ problem }) => problem ?? [])]
  return [...problems.map(({ message }) => message), ...misfits]
}

function factsOf({ config, layers, trainableParams, replacements, fit }: AdapterInspection): [string, string][] {
  const [base, ...others] = settingsOf(config)
  const size = `${thousands(layers.length)}, with ${thousands(trainableParams)} trained parameters`
  const facts: [string, string][] = [base, ['layers', size], ...others]
  for (const { name, rows, dtype, shape } of replacements) {
    const share = rows === undefined ? '' : `${counted(rows, 'row')} of `
    facts.push(['replaces', `${share}${name}, ${dtype} ${shape.join('×')}`])
  }
  if (fit !== undefined) {
    const fitting = fit.parts.filter(({ problem }) => problem === null)
    facts.push(['fit', `${fitting.length} of ${fit.parts.length} parts fit ${fit.base}`])
  }
  return facts
}

export function settingsOf(config: AdapterInspection['config']): [string, string][] {
  const { baseModel, rank, alpha, useRslora, targetModules, targetParameters } = config
  return [
    ['base model', baseModel ?? 'not named'],
    ['rank, alpha', `${rank}, ${alpha}${useRslora ? ' (rsLoRA: scaling alpha/√rank)' : ''}`],
    ['targets', [targetModules, targetParameters].flat().join(', ')],
  ]
}

export function kindOf({ kind, experts, hasMagnitude, hasBias }: AdapterInspection['layers'][number]): string {
  const parts = [experts === undefined || experts === 1 ? kind : `${kind}, ${experts} experts`]
  if (hasMagnitude) parts.push('DoRA')
  if (hasBias) parts.push('bias')
  return parts.join(', ')
}

export function diffReport(report: DiffReport, a: string, b: string): Report {
  const only = [
    ...report.onlyA.map((name) => `only in a: ${name}`),
    ...report.onlyB.map((name) => `only in b: ${name}`),
  ]
  return {
    title: `${a} → ${b}`,
    command: 'diff',
    sections: [
      {
        kind: 'facts',
        facts: [
          ['a', a],
          ['b', b],
          ['differ by', `${(100 * report.relativeChange).toPrecision(3)} % of a`],
          ['most', report.topMovers.slice(0, 5).join(', ') || 'nothing differs'],
        ],
      },
      { kind: 'messages', level: 'warning', texts: only.slice(0, 20) },
      report.kind === 'adapters' ? adapterLayers(report) : tensorLayers(report),
    ],
  }
}

function adapterLayers({ layers }: DiffReport & { kind: 'adapters' }): Section {
  return {
    kind: 'layers',
    spectra: 'ΔB − ΔA',
    columns: [
      ['kind', 'kind'],
      ['shape', 'shape'],
    ],
    measures: [
      ['normDifference', '‖ΔB − ΔA‖'],
      ['relativeChange', '‖ΔB − ΔA‖/‖ΔA‖'],
      ['normA', '‖ΔA‖'],
      ['normB', '‖ΔB‖'],
    ],
    layers: layers.map((layer) => ({ ...layer, shape: layer.shape.join('×') })),
  }
}

function tensorLayers({ tensors }: DiffReport & { kind: 'checkpoints' }): Section {
  return {
    kind: 'layers',
    spectra: 'b − a',
    columns: [['shape', 'shape']],
    measures: [
      ['relativeChange', '‖b − a‖/‖a‖'],
      ['normDifference', '‖b − a‖'],
      ['normA', '‖a‖'],
    ],
    layers: tensors.map((tensor) => ({ ...tensor, shape: tensor.shape.join('×'), singularValues: [] })),
  }
}
