// Chooses the next token from logits: repetition penalty (Keskar et al. 2019), greedy, temperature, top-k (Fan et al.
// 2018), nucleus sampling or top-p (Holtzman et al. 2020), min-p (Nguyen et al. 2024), in the order of Hugging Face's
// transformers. The caller passes the random number.

import { NumericError } from '../../core/base/errors.js'
import type { Sampling } from './sampling.js'

/** Changes of the model's logits before a token is chosen: penalties and biases. */
export interface LogitChanges {
  readonly sampling: Pick<Sampling, 'repetitionPenalty' | 'presencePenalty' | 'frequencyPenalty'>
  /** Tokens of the prompt and the text so far. */
  readonly known: Iterable<number>
  /** Tokens of the text, with how often it has them. */
  readonly written: ReadonlyMap<number, number>
  readonly bias: readonly (readonly [id: number, bias: number])[]
  /** Tokens that must not come now. */
  readonly banned: Iterable<number>
}

/** The penalty on repetition is that of Keskar et al. 2019, the other two are OpenAI's. */
export function changedLogits(
  logits: Float32Array,
  { sampling, known, written, bias, banned }: LogitChanges,
): Float32Array {
  const { repetitionPenalty, presencePenalty, frequencyPenalty } = sampling
  const result = logits.slice()
  if (repetitionPenalty !== 1) {
    for (const id of known)
      result[id] = logits[id] < 0 ? logits[id] * repetitionPenalty : logits[id] / repetitionPenalty
  }
  for (const [id, count] of written) result[id] -= presencePenalty + frequencyPenalty * count
  for (const [id, value] of bias) if (id < result.length) result[id] += value
  for (const id of banned) if (id < result.length) result[id] = Number.NEGATIVE_INFINITY
  return result
}

export interface ScoredToken {
  readonly id: number
  /** Natural logarithm of the probability before filters and penalties; the temperature counts for sampled texts. */
  readonly logprob: number
}

/** e^((logit − the largest logit) / temperature) of each token, and their sum. */
export interface TokenWeights {
  readonly max: number
  readonly temperature: number
  readonly weights: Float64Array
  readonly sum: number
}

/**
 * Powers of 2 with which e^-x is 2^-whole · 2^-(part / PARTS) · (1 + r + r²/2), where r is so small that the error is
 * below 1e-11. With tens of thousands of tokens, Math.exp takes five times as long.
 */
const PART_BITS = 11
const PARTS = 2 ** PART_BITS
const POWERS = Float64Array.from({ length: 1075 }, (_, whole) => 2 ** -whole)
const ROOTS = Float64Array.from({ length: PARTS }, (_, part) => 2 ** (-part / PARTS))

/** Used again for each token: a new array for each would be hundreds of kilobytes of garbage. */
let reused = new Float64Array()

/** The weights are valid until the next call. */
export function weigh(logits: Float32Array, temperature = 1): TokenWeights {
  const max = logits[argmax(logits)]
  if (reused.length < logits.length) reused = new Float64Array(logits.length)
  const weights = reused.subarray(0, logits.length)
  const scale = PARTS / (Math.LN2 * temperature)
  let sum = 0
  for (let i = 0; i < logits.length; i++) {
    const power = (max - logits[i]) * scale
    let weight = 0
    if (power < POWERS.length * PARTS) {
      const steps = power | 0
      const rest = (steps - power) * (Math.LN2 / PARTS)
      weight = POWERS[steps >> PART_BITS] * ROOTS[steps & (PARTS - 1)] * (1 + rest + 0.5 * rest * rest)
    }
    weights[i] = weight
    sum += weight
  }
  return { max, temperature, weights, sum }
}

export function scoreTokens(
  logits: Float32Array,
  id: number,
  count: number,
  { max, temperature, sum }: Omit<TokenWeights, 'weights'> = weigh(logits),
) {
  const scored = (token: number) => ({ id: token, logprob: (logits[token] - max) / temperature - Math.log(sum) })
  const top = count === 0 ? [] : [...largest(logits, Math.min(count, logits.length))].map(scored)
  return { chosen: scored(id), top: top.sort((a, b) => b.logprob - a.logprob || a.id - b.id) }
}

export function argmax(logits: Float32Array): number {
  let best = -1
  let max = Number.NEGATIVE_INFINITY
  for (let i = 0; i < logits.length; i++) {
    const value = logits[i]
    // This comparison also catches NaN. There are tens of thousands of values, so each gets only one comparison.
    if (!(value <= max)) {
      max = value
      best = i
      if (Number.isNaN(value)) break
    }
  }
  if (best < 0 || !Number.isFinite(logits[best])) {
    throw new NumericError({
      where: 'logits',
      what: 'no next token can be chosen',
      expected: 'finite numbers',
      got: best < 0 ? `${logits.length} values of -Infinity` : `${logits[best]} for token ${best}`,
      hint: 'Check the adapter and the model: their sum overflows',
    })
  }
  return best
}

type DrawOptions = Pick<Sampling, 'temperature' | 'topK' | 'topP' | 'minP'>

/** Returns the tokens that may come next. `probabilities[i]` belongs to `ids[i]`; they sum to 1. */
export function tokenDistribution(
  logits: Float32Array,
  { temperature, topK, topP, minP }: DrawOptions,
  { weights } = weigh(logits, temperature),
) {
  let ids = topK < logits.length ? largest(logits, topK) : atLeast(logits, Number.NEGATIVE_INFINITY)
  let probabilities = new Float64Array(ids.length)
  for (let i = 0; i < ids.length; i++) probabilities[i] = weights[ids[i]]
  normalize(probabilities)
  const keep = (kept: Uint32Array) => {
    ids = kept.map((position) => ids[position])
    probabilities = Float64Array.from(kept, (position) => probabilities[position])
    normalize(probabilities)
  }
  if (topP < 1) keep(nucleus(probabilities, topP))
  if (minP > 0) {
    let most = 0
    for (let i = 0; i < probabilities.length; i++) most = Math.max(most, probabilities[i])
    keep(atLeast(probabilities, minP * most))
  }
  return { ids, probabilities }
}

/** @param weighed the weights at the temperature of `sampling`, if they are known */
export function sampleToken(
  logits: Float32Array,
  sampling: DrawOptions,
  uniform: () => number,
  weighed?: TokenWeights,
): number {
  const { temperature, topK, topP, minP } = sampling
  if (temperature === 0) return argmax(logits)
  const all = weighed ?? weigh(logits, temperature)
  if (topK >= logits.length && topP === 1 && minP === 0) return draw(all.weights, all.sum * uniform())
  const { ids, probabilities } = tokenDistribution(logits, sampling, all)
  return ids[draw(probabilities, uniform())]
}

/** Returns the first position up to which the weights sum to more than `target`. */
function draw(weights: Float64Array, target: number): number {
  let sum = 0
  let last = 0
  for (let i = 0; i < weights.length; i++) {
    if (weights[i] === 0) continue
    last = i
    sum += weights[i]
    if (target < sum) break
  }
  return last
}

/** Returns the indices of the `count` largest values, the lowest index first. Of equal values, the first are taken. */
function largest(values: Float32Array | Float64Array, count: number): Uint32Array {
  const heap = heapOfLargest(values, count)
  const [smallest] = heap
  let ties = heap.filter((value) => value === smallest).length
  const result = new Uint32Array(count)
  let length = 0
  for (let i = 0; i < values.length; i++) {
    const value = values[i]
    if (value < smallest) continue
    if (value > smallest || ties-- > 0) result[length++] = i
  }
  return result
}

/** Returns the `count` largest values as a heap, the smallest first. Most values are smaller and need no sorting. */
function heapOfLargest(values: Float32Array | Float64Array, count: number): Float64Array {
  // A sorted array is a heap.
  const heap = Float64Array.from(values.subarray(0, count)).sort()
  for (let i = count; i < values.length; i++) {
    const value = values[i]
    if (value <= heap[0]) continue
    let place = 0
    for (let child = 1; child < count; child = 2 * place + 1) {
      if (heap[child + 1] < heap[child]) child++
      if (heap[child] >= value) break
      heap[place] = heap[child]
      place = child
    }
    heap[place] = value
  }
  return heap
}

/** In most steps, the tokens with nearly all of the probability are fewer than this. */
const LIKELY = 1024

/** Returns the positions of the most likely entries that together reach `mass`, the most likely first. */
function nucleus(probabilities: Float64Array, mass: number): Uint32Array {
  if (probabilities.length > LIKELY) {
    const { kept, sum } = fewest(probabilities, mass, largest(probabilities, LIKELY))
    if (sum >= mass) return kept
  }
  // All entries below the floor sum to less than 1 - mass, so only the few entries above it need sorting.
  return fewest(probabilities, mass, atLeast(probabilities, (1 - mass) / probabilities.length)).kept
}

function fewest(probabilities: Float64Array, mass: number, positions: Uint32Array) {
  positions.sort((a, b) => probabilities[b] - probabilities[a] || a - b)
  let sum = 0
  let count = 0
  while (count < positions.length && sum < mass) sum += probabilities[positions[count++]]
  return { kept: positions.subarray(0, count), sum }
}

/** Returns the positions of all values that are at least `floor`. */
function atLeast(values: Float32Array | Float64Array, floor: number): Uint32Array {
  const positions = new Uint32Array(values.length)
  let count = 0
  for (let i = 0; i < values.length; i++) if (values[i] >= floor) positions[count++] = i
  return positions.slice(0, count)
}

function normalize(weights: Float64Array): void {
  let total = 0
  for (let i = 0; i < weights.length; i++) total += weights[i]
  for (let i = 0; i < weights.length; i++) weights[i] /= total
}
