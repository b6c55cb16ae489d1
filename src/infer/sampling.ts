// Choosing the next token from its logits: greedy, temperature, top-k (Fan et al. 2018) and nucleus, top-p (Holtzman et
// al. 2020), in the order that Hugging Face's transformers applies them. Pure functions; randomness comes in as a number.

import { NumericError } from '../base/errors.js'
import { checkArgument, numberKind, type OptionTable } from '../base/options.js'

/** What a text is generated with where nothing is said. */
export const GENERATE_DEFAULTS = Object.freeze({ maxNewTokens: 128 })

/** How the next token is chosen from the logits. */
export interface SamplingOptions {
  /** 0 takes the most likely token. Default 0, or 1 when topK or topP is given. */
  temperature?: number | undefined
  /** Keep only this many most likely tokens. Default: all. */
  topK?: number | undefined
  /** Keep the fewest most likely tokens whose probabilities sum to at least this, in (0, 1]. Default 1: all. */
  topP?: number | undefined
}

/** What each of them may be. */
export const SAMPLING_KINDS: OptionTable<SamplingOptions> = {
  temperature: numberKind('a finite number of 0 or more', (value) => Number.isFinite(value) && value >= 0),
  topK: numberKind(
    'an integer of 1 or more',
    (value) => value >= 1 && (Number.isSafeInteger(value) || value === Number.POSITIVE_INFINITY),
  ),
  topP: numberKind('a number in (0, 1]', (value) => value > 0 && value <= 1),
}

/** {@link SamplingOptions} with every choice made. */
export interface Sampling {
  readonly temperature: number
  readonly topK: number
  readonly topP: number
}

/** The tokens that may come next. `probabilities[i]` belongs to `ids[i]`; they sum to 1. */
export interface TokenDistribution {
  ids: Uint32Array
  probabilities: Float64Array
}

/** Fills in defaults. Throws ConfigError naming the option that is out of range. */
export function resolveSampling(options: SamplingOptions = {}): Sampling {
  const { topK = Number.POSITIVE_INFINITY, topP = 1 } = options
  const filtered = options.topK !== undefined || options.topP !== undefined
  const temperature = options.temperature ?? (filtered ? 1 : 0)
  checkArgument(temperature, SAMPLING_KINDS.temperature, 'temperature')
  checkArgument(topK, SAMPLING_KINDS.topK, 'topK')
  checkArgument(topP, SAMPLING_KINDS.topP, 'topP')
  return { temperature, topK, topP }
}

/** Index of the largest logit, the first of equals. Throws NumericError on NaN, +∞, or when no logit is finite. */
export function argmax(logits: Float32Array): number {
  let best = -1
  let max = Number.NEGATIVE_INFINITY
  for (let i = 0; i < logits.length; i++) {
    const value = logits[i]
    if (value > max) {
      max = value
      best = i
    } else if (Number.isNaN(value)) {
      best = i
      break
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

/** Softmax of logits ÷ temperature over the tokens that top-k and top-p leave. Needs temperature > 0. */
export function tokenDistribution(logits: Float32Array, { temperature, topK, topP }: Sampling): TokenDistribution {
  const max = logits[argmax(logits)]
  let ids = topK < logits.length ? largest(logits, topK) : Uint32Array.from(logits, (_, id) => id)
  let probabilities = Float64Array.from(ids, (id) => Math.exp((logits[id] - max) / temperature))
  normalize(probabilities)
  if (topP < 1) {
    const kept = nucleus(probabilities, topP)
    ids = kept.map((position) => ids[position])
    probabilities = Float64Array.from(kept, (position) => probabilities[position])
    normalize(probabilities)
  }
  return { ids, probabilities }
}

/** The next token: the most likely one at temperature 0, else a draw. `uniform` is a random number in [0, 1). */
export function sampleToken(logits: Float32Array, sampling: Sampling, uniform: () => number): number {
  if (sampling.temperature === 0) return argmax(logits)
  const { ids, probabilities } = tokenDistribution(logits, sampling)
  const target = uniform()
  let sum = 0
  let last = 0
  for (let i = 0; i < ids.length; i++) {
    if (probabilities[i] === 0) continue
    last = i
    sum += probabilities[i]
    if (target < sum) break
  }
  return ids[last]
}

/** Indices of the `count` largest values, ascending; of equal values the first ones. */
function largest(values: Float32Array, count: number): Uint32Array {
  const smallest = values.slice().sort()[values.length - count]
  const result = new Uint32Array(count)
  let ties = count
  for (const value of values) if (value > smallest) ties--
  let length = 0
  for (let i = 0; i < values.length; i++) {
    if (values[i] > smallest || (values[i] === smallest && ties-- > 0)) result[length++] = i
  }
  return result
}

/** Positions of the most likely entries, in falling order, that together reach `mass`. */
function nucleus(probabilities: Float64Array, mass: number): Uint32Array {
  // All entries below the floor sum to less than 1 - mass, so the nucleus lies above it: only few need sorting.
  const floor = (1 - mass) / probabilities.length
  const candidates: number[] = []
  probabilities.forEach((probability, position) => {
    if (probability >= floor) candidates.push(position)
  })
  candidates.sort((a, b) => probabilities[b] - probabilities[a] || a - b)
  let sum = 0
  let count = 0
  while (count < candidates.length && sum < mass) sum += probabilities[candidates[count++]]
  return Uint32Array.from(candidates.slice(0, count))
}

function normalize(weights: Float64Array): void {
  const total = weights.reduce((sum, weight) => sum + weight, 0)
  for (let i = 0; i < weights.length; i++) weights[i] /= total
}
