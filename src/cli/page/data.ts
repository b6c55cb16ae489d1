// What an inspection's page shows, as the plain data that is embedded in it.

import type { InspectReport } from '../../node.js'
import { thousands } from '../terminal.js'
import { type Stack, stacksOf } from './stacks.js'

export type AdapterInspection = InspectReport & { kind: 'adapter' }

/** Numbers are null where there is none; kept to a few digits, since they are drawn. */
export interface PageLayer {
  name: string
  kind: string
  d: number
  k: number
  rank: number
  alpha: number
  scaling: number
  dtype: string
  normA: number | null
  normB: number | null
  normDelta: number | null
  effectiveRank: number | null
  rank99: number | null
  relativeChange: number | null
  singularValues: number[]
  /** Why it does not fit the base; null where it does; absent without a base. */
  problem?: string | null
}

export interface PageData {
  facts: [label: string, value: string][]
  problems: string[]
  warnings: string[]
  notes: string[]
  layers: PageLayer[]
  stacks: Stack[]
}

export function pageData(report: AdapterInspection): PageData {
  const { config, layers, fit } = report
  const fits = new Map(fit?.parts.map((part) => [part.name, part]))
  const rows = layers.map((layer): PageLayer => {
    const { name, d, k, rank, alpha, scaling, dtype } = layer
    const own = fits.get(name)
    return {
      name,
      kind: kindOf(layer),
      ...{ d, k, rank, alpha, dtype },
      scaling: digits(scaling) ?? scaling,
      normA: digits(layer.normA),
      normB: digits(layer.normB),
      normDelta: digits(layer.normDelta),
      effectiveRank: digits(layer.effectiveRank),
      rank99: digits(layer.rank99),
      relativeChange: own === undefined || own.relativeChange === null ? null : digits(own.relativeChange),
      singularValues: layer.singularValues.map((value) => digits(value) ?? 0),
      ...(fit !== undefined && { problem: own?.problem ?? null }),
    }
  })
  const fitting = fit?.parts.filter(({ problem }) => problem === null).length
  return {
    facts: [
      ['base model', config.baseModel ?? 'not named'],
      ['layers', `${thousands(layers.length)}, with ${thousands(report.trainableParams)} trained parameters`],
      ['rank, alpha', `${config.rank}, ${config.alpha}${config.useRslora ? ' (rsLoRA: scaling alpha/√rank)' : ''}`],
      ['targets', targetsOf(config)],
      ...report.replacements.map(({ name, rows: count, dtype, shape }): [string, string] => {
        return [
          'replaces',
          `${count === undefined ? '' : `${count} row${count === 1 ? '' : 's'} of `}${name}, ${dtype} ${shape.join('×')}`,
        ]
      }),
      ...(fit === undefined
        ? []
        : ([['fit', `${fitting} of ${fit.parts.length} parts fit ${fit.base}`]] as [string, string][])),
    ],
    problems: [
      ...report.problems.map(({ message }) => message),
      ...(fit?.problems ?? []),
      ...(fit?.parts.flatMap(({ problem }) => problem ?? []) ?? []),
    ],
    warnings: [...report.warnings],
    notes: fit?.notes ?? [],
    layers: rows,
    stacks: stacksOf(layers.map(({ name }) => name)),
  }
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

function digits(value: number): number | null {
  return Number.isFinite(value) ? Number(value.toPrecision(6)) : null
}
