// Combines several adapters into one. The exact way stacks the factors, Σ cᵢ·Bᵢ·Aᵢ = [c₁B₁, c₂B₂, …]·[A₁; A₂; …], and
// computes the SVD of that product from two QR decompositions. This gives the closest change of each rank without a
// matrix of the weight's size. `linear` adds the factors, as PEFT's add_weighted_adapter does.

import type { Directory } from '../../core/base/bytes.js'
import { ConfigError, MismatchError, StateError, UnsupportedError } from '../../core/base/errors.js'
import { Steps, type ToolRun } from '../../core/base/progress.js'
import { formatShape, type Matrix } from '../../core/base/tensor.js'
import { beside, copyAs, stacked } from '../../core/linalg/product.js'
import type { LoraAdapter } from '../../lora/adapter.js'
import type { LoraConfig } from '../../lora/config.js'
import { type FactorPair, scaled } from '../../lora/delta.js'
import type { LayerVectors } from '../../lora/factors.js'
import type { PartValues, PartView } from '../../lora/part.js'
import { type OpenAdapter, openForUse } from '../../lora/peft/open.js'
import { weighted } from '../weighted.js'
import {
  assemble,
  type Change,
  changeOf,
  configRank,
  differencePair,
  type FactorPart,
  isFactorPart,
  type NewLayer,
  normOf,
  shellOf,
} from './factor-parts.js'
import type { RankChoice } from './rank.js'
import { type RankReport, type ResizeResult, totalError, truncatedChange } from './resize.js'

/**
 * - `exact`: Σ weight·ΔW, or the closest change of the given rank
 * - `linear`: sums of the factors A and B themselves, which adds products of one adapter's B and another's A
 */
const COMBINATION_TYPES = ['exact', 'linear'] as const

/** A way to combine adapters: one of {@link COMBINATION_TYPES}. */
export type CombinationType = (typeof COMBINATION_TYPES)[number]

/** How {@link combineAdapters} combines. */
export interface CombineSettings extends RankChoice, ToolRun {
  /**
   * `exact`: the weighted sum of the changes. `linear` adds the factors A and B themselves, as in PEFT's
   * add_weighted_adapter.
   * @default exact
   */
  combinationType?: CombinationType | undefined
}

interface CombineWay {
  readonly type: CombinationType
  readonly choice: RankChoice
}

function combineWay({ combinationType: type = 'exact', ...choice }: Omit<CombineSettings, keyof ToolRun>): CombineWay {
  const rule = Object.entries(choice).find(([, value]) => value !== undefined)
  if (type !== 'exact' && rule !== undefined) {
    throw new ConfigError({ where: rule[0], what: `${type} has no choice of a rank`, expected: 'exact' })
  }
  return { type, choice }
}

/** Result of {@link combineAdapters}. */
export type CombineResult = ResizeResult

interface Opened {
  readonly adapter: OpenAdapter
  readonly weight: number
  readonly parts: ReadonlyMap<string, PartView>
  readonly label: string
}

export async function combineAdapters(
  inputs: readonly { readonly adapter: LoraAdapter | Directory; readonly weight: number }[],
  { on, signal, ...settings }: CombineSettings,
): Promise<CombineResult> {
  const way = combineWay(settings)
  const opened: Opened[] = []
  try {
    for (const [index, { adapter, weight }] of inputs.map(weighted).entries()) {
      const parts = await openForUse(adapter, 'combining')
      const byName = new Map(parts.parts().map((part) => [part.name, part]))
      const label = typeof parts.name === 'string' && parts.name !== 'adapter' ? parts.name : `adapter ${index + 1}`
      opened.push({ adapter: parts, weight, parts: byName, label })
    }
    opened.forEach(checkParts)
    const names = [...new Set(opened.flatMap(({ parts }) => [...parts.keys()]))]
    const steps = new Steps(names.length, { on, signal })
    const layers: NewLayer[] = []
    const reports: RankReport[] = []
    const values: PartValues[] = []
    for (const name of names) {
      const owners = opened.filter(({ parts }) => parts.has(name))
      checkAlike(name, owners)
      if (owners[0].parts.get(name)!.kind === 'replacement' || owners[0].parts.get(name)!.kind === 'token-rows') {
        values.push(await ownValues(name, owners))
      } else {
        const { layer, report } = await combineLayer(name, owners, way)
        layers.push(layer)
        reports.push(report)
      }
      await steps.next(name)
    }
    if (layers.length === 0) throw new StateError({ where: 'combine', what: 'the adapters have no layers with a rank' })
    const adapter = assemble(configOf(opened, layers), layers, values)
    return { adapter, layers: reports, error: totalError(reports), warnings: warningsOf(opened, reports) }
  } finally {
    for (const { adapter } of opened) await adapter.close()
  }
}

async function combineLayer(
  name: string,
  owners: readonly Opened[],
  way: CombineWay,
): Promise<{ layer: NewLayer; report: RankReport }> {
  const terms: Term[] = []
  for (const { adapter, weight, label } of owners) {
    const part = await adapter.read(name)
    if (isFactorPart(part)) terms.push({ part, change: changeOf(part), weight, label })
  }
  const { part } = terms[0]
  const { pairs, report } = combinedChange(name, terms, way)
  const fromRank = terms.reduce((sum, term) => sum + term.part.rank, 0)
  const vectors = biasOf(terms, owners)
  return { layer: { part: shellOf(part), change: { pairs, vectors } }, report: { name, fromRank, ...report } }
}

function biasOf(terms: readonly Term[], owners: readonly Opened[]): LayerVectors {
  if (!owners.some(({ adapter }) => adapter.config.loraBias)) return {}
  const d = terms[0].change.pairs.reduce((sum, { weightB }) => sum + weightB.shape[0], 0)
  const biasB = new Float32Array(d)
  for (const { change, weight } of terms) {
    change.vectors.biasB?.forEach((value, i) => {
      biasB[i] += weight * value
    })
  }
  return { biasB }
}

function checkParts({ adapter, parts, weight, label }: Opened): void {
  if (adapter.config.useDora) {
    throw new UnsupportedError({
      where: label,
      what: 'DoRA adapters cannot be combined, because their change depends on the base',
      hint: 'Merge it into its base, make an adapter from both models with mergekit-extract-lora, and combine that adapter',
    })
  }
  for (const { name, kind } of parts.values()) {
    if ((kind !== 'replacement' && kind !== 'token-rows') || weight === 1) continue
    throw new UnsupportedError({
      where: `${label}: ${name}`,
      what: 'what replaces the base’s values has no weight',
      expected: 'weight 1',
      got: String(weight),
    })
  }
}

function checkAlike(name: string, owners: readonly Opened[]): void {
  const factorsOf = (view: PartView) => {
    if (view.kind === 'replacement' || view.kind === 'token-rows') return view.kind
    const { weightA, weightB } = view.tensors
    const experts = view.kind === 'parameter' ? `${view.experts} × ` : ''
    return `${view.kind} ${experts}${formatShape([weightB.shape[0], ...weightA.shape.slice(1)])}`
  }
  const [first, ...others] = owners
  const expected = factorsOf(first.parts.get(name)!)
  for (const next of others) {
    const got = factorsOf(next.parts.get(name)!)
    if (got === expected) continue
    throw new MismatchError({
      where: `${next.label}: ${name}`,
      what: `not the layer of ${first.label}: the adapters belong to different bases`,
      expected,
      got,
    })
  }
}

async function ownValues(name: string, owners: readonly Opened[]): Promise<PartValues> {
  if (owners.length > 1) {
    throw new UnsupportedError({
      where: name,
      what: `${owners.map(({ label }) => label).join(' and ')} replace the same values of the base, so they cannot be added`,
      hint: 'Merge the adapters into the base one after the other',
    })
  }
  return owners[0].adapter.read(name)
}

function configOf(opened: readonly Opened[], layers: readonly NewLayer[]): LoraConfig {
  const [{ config }] = opened.map(({ adapter }) => adapter)
  const targetsOf = ({ targetModules, excludeModules, layersToTransform, layersPattern }: LoraConfig) =>
    JSON.stringify([targetModules, excludeModules, layersToTransform, layersPattern])
  const isAlike = opened.every(({ adapter }) => targetsOf(adapter.config) === targetsOf(config))
  const modules = layers.filter(({ part }) => part.kind !== 'parameter').map(({ part }) => part.name)
  const all = <T>(of: (config: LoraConfig) => readonly T[]) => [
    ...new Set(opened.flatMap((term) => of(term.adapter.config))),
  ]
  return {
    ...config,
    ...(!isAlike && {
      targetModules: modules,
      excludeModules: undefined,
      layersToTransform: undefined,
      layersPattern: undefined,
    }),
    targetParameters: all((config) => config.targetParameters),
    modulesToSave: all((config) => config.modulesToSave),
    trainableTokenIndices: undefined,
    loraBias: opened.some(({ adapter }) => adapter.config.loraBias),
  }
}

function warningsOf(opened: readonly Opened[], layers: readonly RankReport[]): string[] {
  const bases = [...new Set(opened.flatMap(({ adapter }) => adapter.config.baseModel ?? []))]
  const still = layers.filter(({ norm }) => norm === 0)
  return [
    ...(bases.length > 1 ? [`the adapters name different bases: ${bases.join(', ')}`] : []),
    ...(still.length > 0 ? [`${still.length} of ${layers.length} layers change nothing: ${still[0].name}`] : []),
  ]
}

interface Term {
  readonly part: FactorPart
  readonly change: Change
  readonly weight: number
  readonly label: string
}

interface Combined {
  readonly pairs: readonly FactorPair[]
  readonly report: Pick<RankReport, 'rank' | 'norm' | 'error'>
}

/** Combines one layer of several adapters. B includes the scaling, so rsLoRA and patterns need no special treatment. */
function combinedChange(name: string, terms: readonly Term[], { type, choice }: CombineWay): Combined {
  const { part, change } = terms[0]
  if (type === 'exact') {
    const { change: kept, report } = truncatedChange(part, sumOf(terms), choice)
    return { pairs: kept.pairs, report }
  }
  checkRanks(name, terms)
  const pairs = change.pairs.map((_, at) => combineFactors(terms, at))
  const rank = configRank(part, pairs[0].weightA.shape[0], pairs.length)
  return { pairs, report: { rank, norm: normOf(pairs), error: distance(pairs, sumOf(terms).pairs) } }
}

function sumOf(terms: readonly Term[]): Change {
  const pairs = terms[0].change.pairs.map((_, at) => ({
    weightA: stacked(terms.map(({ change }) => change.pairs[at].weightA)),
    weightB: beside(terms.map(({ change, weight }) => scaled(change.pairs[at].weightB, weight))),
  }))
  return { pairs, vectors: {} }
}

function checkRanks(name: string, terms: readonly Term[]): void {
  const ranks = terms.map(({ part }) => part.rank)
  if (new Set(ranks).size === 1) return
  throw new ConfigError({
    where: name,
    what: 'linear adds the factors themselves, so all adapters need the same rank here',
    expected: `rank ${ranks[0]}`,
    got: ranks.join(', '),
    hint: 'exact takes adapters of any ranks',
  })
}

/** With c = weight·s, adds sgn(c)·√|c|·A and √|c|·B (PEFT's _generalized_task_arithmetic_weighted_adapter). */
function combineFactors(terms: readonly Term[], at: number): FactorPair {
  const factors = terms.map(({ part, change, weight }) => {
    const c = weight * part.scaling
    const { weightA, weightB } = change.pairs[at]
    // The change's B includes s, but this sum is of the factors as they are stored.
    const b = part.scaling === 0 ? weightB : scaled(weightB, 1 / part.scaling)
    const root = Math.sqrt(Math.abs(c))
    return { a: { matrix: weightA, weight: Math.sign(c) * root }, b: { matrix: b, weight: root } }
  })
  return { weightA: weightedSum(factors.map(({ a }) => a)), weightB: weightedSum(factors.map(({ b }) => b)) }
}

/** Adds in f64, and rounds the sum to the type of the first matrix. */
function weightedSum(matrices: readonly { readonly matrix: Matrix; readonly weight: number }[]): Matrix {
  const [{ matrix: first }] = matrices
  const sum = new Float64Array(first.data.length)
  for (const { matrix, weight } of matrices) for (let i = 0; i < sum.length; i++) sum[i] += weight * matrix.data[i]
  return copyAs({ data: sum, shape: first.shape }, first.data)
}

function distance(got: readonly FactorPair[], wanted: readonly FactorPair[]): number {
  const total = normOf(wanted)
  return total === 0 ? 0 : normOf(wanted.map((pair, at) => differencePair(got[at], pair))) / total
}
