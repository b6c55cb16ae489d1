// Resizes an adapter: computes the SVD of s·B·A exactly, by two QR decompositions and the SVD of a small core. The
// product itself is never formed.

import { closing, type Directory } from '../../core/base/bytes.js'
import { StateError } from '../../core/base/errors.js'
import { Steps, type ToolRun } from '../../core/base/progress.js'
import type { FloatArray } from '../../core/base/tensor.js'
import { copyAs } from '../../core/linalg/product.js'
import { type Svd, svdOfProduct, truncated } from '../../core/linalg/svd.js'
import type { LoraAdapter } from '../../lora/adapter.js'
import { padded } from '../../lora/delta.js'
import { balancedFactors } from '../../lora/init/decomposed.js'
import type { PartValues } from '../../lora/part.js'
import { openForUse } from '../../lora/peft/open.js'
import { energyOf } from '../../lora/spectrum.js'
import {
  assemble,
  type Change,
  changeOf,
  configRank,
  type FactorPart,
  isFactorPart,
  type NewLayer,
  shellOf,
} from './factor-parts.js'
import { chosenRank, type RankChoice } from './rank.js'

/** Result for one layer. */
export interface RankReport {
  /** The layer's name, such as `model.layers.0.self_attn.q_proj`. */
  name: string
  /** The rank before; for a combined layer, the sum of the ranks. */
  fromRank: number
  /** The rank of the result. */
  rank: number
  /** ‖ΔW‖ before, the Frobenius norm. */
  norm: number
  /** The lost share: ‖ΔW − ΔW'‖/‖ΔW‖ (Frobenius). 0 for a layer without a change. */
  error: number
}

/** Result of {@link resizeAdapter}. */
export interface ResizeResult {
  /** The adapter with its new ranks, or the combined adapter. */
  adapter: LoraAdapter
  /**
   * Result for each layer, in the adapter's order. For combined layers, `error` is the relative difference from the
   * exact result of the combination type.
   */
  layers: RankReport[]
  /** Over all layers: √Σ‖ΔW − ΔW'‖² / √Σ‖ΔW‖². */
  error: number
  /** Possible mistakes: no rank becomes lower, adapters name different bases, or layers change nothing. */
  warnings: string[]
}

export async function resizeAdapter(
  source: LoraAdapter | Directory,
  { on, signal, ...choice }: RankChoice & ToolRun,
): Promise<ResizeResult> {
  return closing(await openForUse(source, 'another rank'), async (opened) => {
    const parts = opened.parts()
    const steps = new Steps(parts.length, { on, signal })
    const layers: NewLayer[] = []
    const reports: RankReport[] = []
    const values: PartValues[] = []
    for (const { name } of parts) {
      const part = await opened.read(name)
      if (isFactorPart(part)) {
        const { change, report } = truncatedChange(part, changeOf(part), choice)
        layers.push({ part: shellOf(part), change })
        reports.push({ name, fromRank: part.rank, ...report })
      } else values.push(part)
      await steps.next(name)
    }
    if (layers.length === 0) {
      throw new StateError({ where: opened.name, what: 'the adapter has no layers with a rank' })
    }
    const isSame = reports.every(({ rank, fromRank }) => rank >= fromRank)
    const highest = Math.max(...reports.map(({ fromRank }) => fromRank))
    const warnings = isSame ? [`nothing changed: the highest rank of a layer was ${highest} and is ${highest} now`] : []
    return { adapter: assemble(opened.config, layers, values), layers: reports, error: totalError(reports), warnings }
  })
}

export function truncatedChange(
  part: FactorPart,
  change: Change,
  choice: RankChoice,
): { change: Change; report: Pick<RankReport, 'rank' | 'norm' | 'error'> } {
  const found = change.pairs.map(({ weightA, weightB }) => {
    const svd = svdOfProduct(weightB, weightA)
    return { svd, energy: energyOf(svd.s) }
  })
  // The config's rank of a convolution is the sum over its groups. Each matrix here belongs to one group.
  const each = configRank(part, 1, found.length)
  const most = choice.rank === undefined ? undefined : Math.max(1, Math.floor(choice.rank / each))
  const { pairs, rank, ...report } = closestPairs(found, { ...choice, rank: most }, change.pairs[0].weightA.data)
  return { change: { ...change, pairs }, report: { ...report, rank: rank * each } }
}

/**
 * Gives all matrices one rank, the largest that any of them needs. `energy` is Σσ², even of values that `svd` lacks.
 */
function closestPairs(
  found: readonly { readonly svd: Svd; readonly energy: number }[],
  choice: RankChoice,
  like: FloatArray,
) {
  const rank = Math.max(...found.map(({ svd: { s }, energy }) => chosenRank(s, choice, energy)))
  const norm = Math.sqrt(sum(found.map(({ energy }) => energy)))
  const lost = found.map(({ svd: { s }, energy }) => Math.max(0, energy - energyOf(s)) + energyOf(s, rank))
  const pairs = found.map(({ svd }) => {
    const { weightA, weightB } = balancedFactors(truncated(svd, Math.min(rank, svd.s.length)))
    return padded({ weightA: copyAs(weightA, like), weightB: copyAs(weightB, like) }, rank)
  })
  return { pairs, rank, norm, error: norm === 0 ? 0 : Math.sqrt(sum(lost)) / norm }
}

export function totalError(layers: readonly Pick<RankReport, 'norm' | 'error'>[]): number {
  const norm = sum(layers.map((layer) => layer.norm ** 2))
  return norm === 0 ? 0 : Math.sqrt(sum(layers.map((layer) => (layer.norm * layer.error) ** 2)) / norm)
}

function sum(values: readonly number[]): number {
  return values.reduce((total, value) => total + value, 0)
}
