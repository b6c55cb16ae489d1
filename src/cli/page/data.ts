// What an inspection's page shows, as the plain data that is embedded in it.

import type { InspectReport, PartFit } from '../../node.js'
import { thousands } from '../terminal.js'
import { type Stack, stacksOf } from './stacks.js'

export type AdapterInspection = InspectReport & { kind: 'adapter' }

/** A layer with what columns and measures show of it. Numbers are null where there is none; kept to a few digits, since they are drawn. */
export interface PageLayer {
  name: string
  singularValues: number[]
  /** Why it does not fit the base; null where it does; absent without a base. */
  problem?: string | null
  [key: string]: string | number | null | number[] | undefined
}

/** What is shown of each layer: its key, and what it is called. */
export type Shown = readonly [key: string, label: string]

/** All that the page shows. */
export interface PageData {
  facts: [label: string, value: string][]
  problems: string[]
  warnings: string[]
  notes: string[]
  layers: PageLayer[]
  stacks: Stack[]
  /** Columns of the table, before the measures. */
  columns: readonly Shown[]
  /** Numbers that maps can show. */
  measures: readonly Shown[]
  /** Whose singular values the curves are. */
  curves: string
}

const COLUMNS: readonly Shown[] = [
  ['kind', 'kind'],
  ['d', 'd'],
  ['k', 'k'],
  ['rank', 'rank'],
  ['alpha', 'alpha'],
  ['scaling', 'scaling'],
  ['dtype', 'type'],
]

const MEASURES: readonly Shown[] = [
  ['normDelta', '‖s·B·A‖'],
  ['relativeChange', '‖s·B·A‖/‖W‖'],
  ['effectiveRank', 'effective rank'],
  ['rank99', 'rank for 99 %'],
  ['normA', '‖A‖'],
  ['normB', '‖B‖'],
]

export function pageData(report: AdapterInspection): PageData {
  const { layers, fit } = report
  const fits = new Map(fit?.parts.map((part) => [part.name, part]))
  return {
    facts: factsOf(report),
    problems: [
      ...report.problems.map(({ message }) => message),
      ...(fit?.problems ?? []),
      ...(fit?.parts.flatMap(({ problem }) => problem ?? []) ?? []),
    ],
    warnings: [...report.warnings],
    notes: fit?.notes ?? [],
    layers: layers.map((layer) => {
      const own = fits.get(layer.name)
      return { ...pageLayer(layer, own), ...(fit !== undefined && { problem: own?.problem ?? null }) }
    }),
    stacks: stacksOf(layers.map(({ name }) => name)),
    columns: COLUMNS,
    measures: MEASURES,
    curves: 's·B·A',
  }
}

function pageLayer(layer: AdapterInspection['layers'][number], fit: PartFit | undefined): PageLayer {
  const { name, d, k, rank, alpha, scaling, dtype } = layer
  return {
    ...{ name, d, k, rank, alpha, dtype },
    kind: kindOf(layer),
    scaling: digits(scaling) ?? scaling,
    normA: digits(layer.normA),
    normB: digits(layer.normB),
    normDelta: digits(layer.normDelta),
    effectiveRank: digits(layer.effectiveRank),
    rank99: digits(layer.rank99),
    relativeChange: digits(fit?.relativeChange ?? null),
    singularValues: layer.singularValues.map((value) => digits(value) ?? 0),
  }
}

function factsOf({ config, layers, trainableParams, replacements, fit }: AdapterInspection): PageData['facts'] {
  const facts: PageData['facts'] = [
    ['base model', config.baseModel ?? 'not named'],
    ['layers', `${thousands(layers.length)}, with ${thousands(trainableParams)} trained parameters`],
    ['rank, alpha', `${config.rank}, ${config.alpha}${config.useRslora ? ' (rsLoRA: scaling alpha/√rank)' : ''}`],
    ['targets', targetsOf(config)],
  ]
  for (const { name, rows, dtype, shape } of replacements) {
    const share = rows === undefined ? '' : `${rows} row${rows === 1 ? '' : 's'} of `
    facts.push(['replaces', `${share}${name}, ${dtype} ${shape.join('×')}`])
  }
  if (fit !== undefined) {
    const fitting = fit.parts.filter(({ problem }) => problem === null)
    facts.push(['fit', `${fitting.length} of ${fit.parts.length} parts fit ${fit.base}`])
  }
  return facts
}

export function targetsOf({ targetModules, targetParameters }: AdapterInspection['config']): string {
  return [targetModules, targetParameters].flat().join(', ')
}

/** As in `linear, DoRA`. */
export function kindOf({ kind, experts, hasMagnitude, hasBias }: AdapterInspection['layers'][number]): string {
  const parts = [experts === undefined || experts === 1 ? kind : `${kind}, ${experts} experts`]
  if (hasMagnitude) parts.push('DoRA')
  if (hasBias) parts.push('bias')
  return parts.join(', ')
}

export function digits(value: number | null): number | null {
  return value !== null && Number.isFinite(value) ? Number(value.toPrecision(6)) : null
}
