// Combines several adapters into one. The exact way stacks the factors, Σ cᵢ·Bᵢ·Aᵢ = [c₁B₁, c₂B₂, …]·[A₁; A₂; …], and
// computes the SVD of that product from two QR decompositions. This gives the closest change of each rank without a
// matrix of the weight's size. The other ways follow PEFT's add_weighted_adapter (0.21, tuners/lora/model.py).

import type { Directory, Place } from '../base/bytes.js'
import { ConfigError, MismatchError, StateError, UnsupportedError } from '../base/errors.js'
import { Steps } from '../base/progress.js'
import { Random } from '../base/random.js'
import { type FloatArray, formatShape, type Matrix, zeros } from '../base/tensor.js'
import { addScaled, beside, copyAs, norm, product, stacked } from '../linalg/product.js'
import { randomizedSvd } from '../linalg/randomized-svd.js'
import type { LoraAdapter, PartOfKind } from '../lora/adapter.js'
import type { LoraConfig } from '../lora/config.js'
import { type FactorPair, scaled } from '../lora/delta.js'
import type { LayerVectors } from '../lora/factors.js'
import type { PartValues, PartView } from '../lora/part.js'
import { weighted } from '../merge/weighted.js'
import { type OpenAdapter, openForUse } from '../peft/open.js'
import { type CombineSettings, type CombineWay, combineWay, FULL_RANK_TYPES } from './combine-settings.js'
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
import { type LeadingSvd, leadingSvd, type RankChoice } from './rank.js'
import { closestPairs, type RankReport, type ResizeResult, totalError, truncatedChange } from './resize.js'
import { sparseSum } from './sparse.js'
import { openBaseWeights } from './to-plain.js'

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
  { onProgress, signal, ...settings }: CombineSettings,
  base?: Place,
): Promise<CombineResult> {
  const way = combineWay(settings)
  const opened: Opened[] = []
  let doraBase: DoraBase | undefined
  try {
    for (const [index, { adapter, weight }] of inputs.map(weighted).entries()) {
      const parts = await openForUse(adapter, 'combining')
      const byName = new Map(parts.parts().map((part) => [part.name, part]))
      const label = typeof parts.name === 'string' && parts.name !== 'adapter' ? parts.name : `adapter ${index + 1}`
      opened.push({ adapter: parts, weight, parts: byName, label })
    }
    const effectiveWay = opened.length === 1 && way.isPeft ? { ...way, type: 'linear' as const } : way
    for (const adapter of opened) checkParts(adapter, effectiveWay, base !== undefined)
    checkAlikeSettings(opened)
    if (base !== undefined && opened.some(({ adapter }) => adapter.config.useDora)) {
      doraBase = await openDoraBase(base, opened)
    }
    const names = [...new Set(opened.flatMap(({ parts }) => [...parts.keys()]))]
    const uniform = effectiveWay.isPeft
      ? { rank: peftRank(opened, effectiveWay), useRslora: opened[0].adapter.config.useRslora }
      : undefined
    const steps = new Steps(names.length, { onProgress, signal })
    const layers: NewLayer[] = []
    const reports: RankReport[] = []
    const values: PartValues[] = []
    for (const name of names) {
      const owners = opened.filter(({ parts }) => parts.has(name))
      checkAlike(name, owners)
      if (owners[0].parts.get(name)!.kind === 'replacement' || owners[0].parts.get(name)!.kind === 'token-rows') {
        values.push(await ownValues(name, owners))
      } else {
        const { layer, report } = await combineLayer(name, owners, effectiveWay, { uniform: uniform?.rank, doraBase })
        layers.push(layer)
        reports.push(report)
      }
      await steps.next(name)
    }
    if (layers.length === 0) throw new StateError({ where: 'combine', what: 'the adapters have no layers with a rank' })
    const adapter = assemble(configOf(opened, layers), layers, values, uniform)
    return { adapter, layers: reports, error: totalError(reports), warnings: warningsOf(opened, reports) }
  } finally {
    await doraBase?.close()
    for (const { adapter } of opened) await adapter.close()
  }
}

async function combineLayer(
  name: string,
  owners: readonly Opened[],
  way: CombineWay,
  { uniform, doraBase }: { uniform: number | undefined; doraBase: DoraBase | undefined },
): Promise<{ layer: NewLayer; report: RankReport }> {
  const terms: Term[] = []
  for (const { adapter, weight, label } of owners) {
    const part = await adapter.read(name)
    if (!isFactorPart(part)) continue
    const hasMagnitude = part.kind === 'linear' && part.magnitude !== undefined
    const full = hasMagnitude ? await doraBase!.change(part) : undefined
    terms.push({ part, change: changeOf(part), weight, label, full })
  }
  const { part } = terms[0]
  const ownWay = uniform === undefined ? way : { ...way, choice: { ...way.choice, rank: uniform } }
  const { pairs, report } = await combinedChange(name, terms, ownWay)
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

function checkParts(opened: Opened, way: CombineWay, hasBase: boolean): void {
  const { adapter, parts, weight, label } = opened
  const { config } = adapter
  if (config.useDora) checkDora(opened, way, hasBase)
  if (config.loraBias && (way.isPeft || way.sum.keep !== 'all')) {
    throw new UnsupportedError({
      where: label,
      what: `biases of B (lora_bias) are not combined ${way.isPeft ? 'by PEFT, which leaves them out' : `by ${way.type}`}`,
      expected: 'exact, svd, cat or linear, without peftCompatible',
    })
  }
  for (const { name, kind } of parts.values()) {
    if (kind === 'parameter' && way.isPeft) {
      const what = 'PEFT does not combine adapted parameters (target_parameters)'
      throw new UnsupportedError({ where: `${label}: ${name}`, what, hint: 'Combine without peftCompatible' })
    }
    if (kind !== 'replacement' && kind !== 'token-rows') continue
    if (!way.isPeft && weight === 1) continue
    throw new UnsupportedError({
      where: `${label}: ${name}`,
      what: way.isPeft
        ? 'PEFT leaves out tensors that replace the base’s'
        : 'what replaces the base’s values has no weight',
      ...(!way.isPeft && { expected: 'weight 1', got: String(weight) }),
    })
  }
}

/**
 * DoRA's change is not a product of two factors, so only ways that take the closest change of a rank can combine it.
 */
function checkDora({ parts, label }: Opened, { type, choice, isPeft }: CombineWay, hasBase: boolean): void {
  const refuse = (what: string, hint: string) => {
    throw new UnsupportedError({ where: label, what: `${what}, because the change of DoRA depends on the base`, hint })
  }
  if (isPeft) {
    refuse('PEFT’s way does not combine DoRA adapters', 'Combine without peftCompatible, with the base and a rank')
  }
  if (!FULL_RANK_TYPES.includes(type)) {
    refuse(`${type} does not combine DoRA adapters`, `Use ${FULL_RANK_TYPES.join(', ')}, with the base and a rank`)
  }
  if (!hasBase) {
    refuse('DoRA adapters cannot be combined without their base', 'Give the base (`base`) and a rank')
  }
  const unsupported = [...parts.values()].find((part) => isDora(part) && part.kind !== 'linear')
  if (unsupported !== undefined) {
    const hint =
      'Merge it into its base, make an adapter from the result with `lowrank extract`, and combine that adapter'
    const what = `DoRA of a layer of kind ${unsupported.kind}`
    throw new UnsupportedError({ where: `${label}: ${unsupported.name}`, what, hint })
  }
  const isChosen = Object.values(choice).some((rule) => rule !== undefined)
  if (type === 'exact' && !isChosen) {
    throw new ConfigError({
      where: 'rank',
      what: 'missing: the change of a DoRA layer can have any rank',
      expected: 'one of rank, energy, error and ratio',
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

function checkAlikeSettings(opened: readonly Opened[]): void {
  const fields = [
    ['layerReplication', 'layer_replication', 'the adapters repeat different layers of their base'],
    ['aloraInvocationTokens', 'alora_invocation_tokens', 'different tokens turn the adapters on'],
  ] as const
  for (const [field, name, what] of fields) {
    const of = ({ adapter }: Opened) => JSON.stringify(adapter.config[field] ?? [])
    const differing = opened.find((candidate) => of(candidate) !== of(opened[0]))
    if (differing === undefined) continue
    throw new MismatchError({ where: `${differing.label}: ${name}`, what, expected: of(opened[0]), got: of(differing) })
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

function peftRank(opened: readonly Opened[], { type, choice }: CombineWay): number {
  const ranks = opened.map(({ adapter: { config } }) => Math.max(config.rank, ...Object.values(config.rankPattern)))
  if (type === 'cat') return ranks.reduce((sum, rank) => sum + rank, 0)
  return choice.rank ?? Math.max(...ranks)
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
    useDora: false,
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

function isDora(part: PartView): boolean {
  return 'magnitude' in part.tensors && part.tensors.magnitude !== undefined
}

type DoraBase = Awaited<ReturnType<typeof openDoraBase>>

/**
 * Opens the base to compute the changes of DoRA layers. DoRA's weight is m·(W + s·B·A)/‖W + s·B·A‖ with a norm for each
 * row (Liu et al. 2024, arXiv 2402.09353), so its difference from W depends on W and may have the full rank.
 */
async function openDoraBase(base: Place, opened: readonly Opened[]) {
  const layers = new Map(
    opened.flatMap(({ adapter }) =>
      adapter.parts().flatMap((part) => {
        if (part.kind !== 'linear' || !isDora(part)) return []
        const shape: [number, number] = [part.tensors.weightB.shape[0], part.tensors.weightA.shape[1]]
        return [[part.name, { name: part.name, shape }] as const]
      }),
    ),
  )
  const fanInFanOut = opened.some(({ adapter }) => adapter.config.fanInFanOut)
  const weights = await openBaseWeights(base, [...layers.values()], { fanInFanOut })
  return {
    /** Computes W' − W (d, k) of a layer with a magnitude. */
    async change(layer: PartOfKind<'linear'>): Promise<Matrix> {
      const weight = copyAs(await weights.read(layer.name), new Float64Array())
      layer.attachBase(weight)
      try {
        layer.merge()
        const { data, shape } = layer.baseWeight!
        const change = new Float32Array(data.length)
        for (let i = 0; i < data.length; i++) change[i] = data[i] - weight.data[i]
        return { data: change, shape }
      } finally {
        layer.dispose()
      }
    },
    close: weights.close,
  }
}

interface Term {
  readonly part: FactorPart
  readonly change: Change
  readonly weight: number
  readonly label: string
  /** DoRA's change as a full matrix, because it is not a product of the factors. */
  readonly full?: Matrix | undefined
}

interface Combined {
  readonly pairs: readonly FactorPair[]
  readonly report: Pick<RankReport, 'rank' | 'norm' | 'error'>
}

/** The share of the energy that our search may miss when PEFT computes a full SVD. */
const TIGHT = 1e-10

/** Combines one layer of several adapters. B includes the scaling, so rsLoRA and patterns need no special treatment. */
async function combinedChange(name: string, terms: readonly Term[], way: CombineWay): Promise<Combined> {
  const { type } = way
  const { part, change } = terms[0]
  const largest = Math.max(...terms.map(({ part }) => part.rank))
  // Without a rank, PEFT's types take the largest one; `exact` keeps its own rule.
  const choice = type === 'exact' ? way.choice : { ...way.choice, rank: way.choice.rank ?? largest }
  if (type.endsWith('_svd')) return sumOfChanges(name, terms, way, choice)
  if (terms.some(({ full }) => full !== undefined)) return closest(part, [fullSumOf(terms)], choice)
  if (type === 'exact' || type === 'svd') {
    const { change: kept, report } = truncatedChange(part, sumOf(terms), choice)
    return { pairs: kept.pairs, report }
  }
  if (type !== 'cat') checkRanks(name, terms, type)
  const count = change.pairs.length
  const added = () => Array.from({ length: count }, (_, at) => combineFactors(name, terms, at, way))
  const pairs = type === 'cat' ? sumOf(terms).pairs : added()
  const rank = configRank(part, pairs[0].weightA.shape[0], count)
  const error = type === 'linear' ? distance(pairs, sumOf(terms).pairs) : 0
  return { pairs, report: { rank, norm: normOf(pairs), error } }
}

function sumOf(terms: readonly Term[]): Change {
  const pairs = terms[0].change.pairs.map((_, at) => ({
    weightA: stacked(terms.map(({ change }) => change.pairs[at].weightA)),
    weightB: beside(terms.map(({ change, weight }) => scaled(change.pairs[at].weightB, weight))),
  }))
  return { pairs, vectors: {} }
}

function fullSumOf(terms: readonly Term[]): Matrix {
  const [first] = terms
  const [{ weightA, weightB }] = first.change.pairs
  const sum = zeros(weightB.shape[0], weightA.shape[1], new Float32Array())
  for (const { change, weight, full } of terms) {
    if (full !== undefined) addScaled(sum, full, weight)
    else {
      const [pair] = change.pairs
      product(copyAs(pair.weightB, sum.data), copyAs(pair.weightA, sum.data), { scale: weight, addTo: sum })
    }
  }
  return sum
}

function checkRanks(name: string, terms: readonly Term[], type: string): void {
  const ranks = terms.map(({ part }) => part.rank)
  if (new Set(ranks).size === 1) return
  throw new ConfigError({
    where: name,
    what: `${type} adds the factors themselves, so all adapters need the same rank here`,
    expected: `rank ${ranks[0]}`,
    got: ranks.join(', '),
    hint: 'exact, svd and cat take adapters of any ranks',
  })
}

/**
 * With c = weight·s, multiplies A by sgn(c)·√|c| and B by √|c| (PEFT's _generalized_task_arithmetic_weighted_adapter).
 */
function combineFactors(name: string, terms: readonly Term[], at: number, { sum, seed }: CombineWay): FactorPair {
  const factors = terms.map(({ part, change, weight }) => {
    const c = weight * part.scaling
    const { weightA, weightB } = change.pairs[at]
    // The change's B includes s, but the trimming must see B as it is stored.
    const b = part.scaling === 0 ? weightB : scaled(weightB, 1 / part.scaling)
    return { weightA, weightB: b, rootA: Math.sign(c) * Math.sqrt(Math.abs(c)), rootB: Math.sqrt(Math.abs(c)) }
  })
  type Factors = (typeof factors)[number]
  const combine = (
    role: 'A' | 'B',
    of: (entry: Factors) => { data: FloatArray; weight: number },
    like: Matrix,
  ): Matrix => {
    const random = (index: number) => new Random(seed, `combine/${name}/${at}/${role}/${index}`)
    return copyAs({ data: sparseSum(factors.map(of), sum, random), shape: like.shape }, like.data)
  }
  const [{ weightA, weightB }] = factors
  return {
    weightA: combine('A', (entry) => ({ data: entry.weightA.data, weight: entry.rootA }), weightA),
    weightB: combine('B', (entry) => ({ data: entry.weightB.data, weight: entry.rootB }), weightB),
  }
}

async function sumOfChanges(
  name: string,
  terms: readonly Term[],
  { sum, seed }: CombineWay,
  choice: RankChoice,
): Promise<Combined> {
  const { part, change } = terms[0]
  const merged = change.pairs.map((_, at): Matrix => {
    const tensors = terms.map(({ change, weight, full }) => {
      const { weightA, weightB } = change.pairs[at]
      return { ...(full ?? product(weightB, weightA)), weight }
    })
    const random = (index: number) => new Random(seed, `combine/${name}/${at}/${index}`)
    return { data: sparseSum(tensors, sum, random), shape: tensors[0].shape }
  })
  return closest(part, merged, choice)
}

async function closest(part: FactorPart, matrices: readonly Matrix[], choice: RankChoice): Promise<Combined> {
  const each = configRank(part, 1, matrices.length)
  const most = choice.rank === undefined ? undefined : Math.max(1, Math.floor(choice.rank / each))
  const like = part.tensors.weightA.data
  const found: LeadingSvd[] = []
  for (const matrix of matrices) {
    const decompose = (rank: number) => randomizedSvd(matrix, rank, { tolerance: TIGHT })
    found.push(
      await leadingSvd({ shape: matrix.shape, energy: norm(matrix) ** 2, decompose }, { ...choice, rank: most }),
    )
  }
  const { pairs, rank, ...report } = closestPairs(found, like)
  return { pairs, report: { rank: rank * each, ...report } }
}

function distance(got: readonly FactorPair[], wanted: readonly FactorPair[]): number {
  const total = normOf(wanted)
  return total === 0 ? 0 : normOf(wanted.map((pair, at) => differencePair(got[at], pair))) / total
}
