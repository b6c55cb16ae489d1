// The factors of an extracted weight, as a layer of its kind.

import type { Matrix } from '../base/tensor.js'
import { transpose } from '../linalg/product.js'
import { LoraAdapter } from '../lora/adapter.js'
import type { FactorPair } from '../lora/delta.js'
import type { NewLayer } from './assemble.js'
import { besideByExpert, changeOf, isFactorPart, padded, shellOf, stacked } from './factor-parts.js'
import type { LeadingSvd } from './leading-svd.js'
import { balancedPair } from './resize.js'

/** Kinds of weights that factors carry; `conv1d` is stored as (k, d), as GPT-2's. */
export type ExtractKind = 'linear' | 'conv1d' | 'embedding' | 'parameter'

/**
 * A layer whose scaling is 1.
 *
 * @param found the SVD of the weight as it is stored, (rows, columns); of a parameter one for each expert
 * @param rank at least that of each
 */
export function layerOf(
  name: string,
  kind: ExtractKind,
  found: readonly LeadingSvd[],
  rank: number,
): NewLayer | undefined {
  const like = new Float32Array()
  const pairs = found.map((one) => padded(balancedPair(one.svd, one.rank, like), rank))
  const [pair] = pairs
  const adapter = new LoraAdapter({ rank, alpha: rank })
  if (kind === 'parameter') {
    adapter.addExperts(name, stacked(pairs.map(({ weightA }) => weightA)), besideByExpert(pairs))
  } else if (kind === 'embedding') adapter.addEmbedding(name, ...turned(pair))
  else if (kind === 'conv1d') adapter.addFactors(name, ...turned(pair))
  else adapter.addFactors(name, pair.weightA, pair.weightB)
  const part = adapter.get(name)
  return part !== undefined && isFactorPart(part) ? { part: shellOf(part), change: changeOf(part) } : undefined
}

/** A and B of the transposed matrix. */
function turned({ weightA, weightB }: FactorPair): [A: Matrix, B: Matrix] {
  return [transpose(weightB), transpose(weightA)]
}
