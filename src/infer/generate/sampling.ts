// How the next token is chosen: the options and their defaults.

import { GENERATE_OPTIONS_DEFAULTS, SAMPLING_OPTIONS } from '../gen/options.js'

export const GENERATE_DEFAULTS = Object.freeze(GENERATE_OPTIONS_DEFAULTS)

/** How the next token is chosen from the logits. What is left out is taken from the model's generation_config.json. */
export interface SamplingOptions {
  /**
   * 0 always takes the most likely token; 1 draws with the probabilities of the model; above 1 is more random.
   * Default: that of generation_config.json where it samples (do_sample) or where `topK`, `topP` or `minP` is given,
   * else 0.
   * @range a finite number of at least 0
   */
  temperature?: number | undefined
  /**
   * Keep only this many most likely tokens. Default: that of generation_config.json; 50 where it samples without one;
   * else all.
   * @range an integer of at least 1, or Infinity
   */
  topK?: number | undefined
  /**
   * Keep the fewest most likely tokens whose probabilities sum to at least this. Default: that of
   * generation_config.json, else 1: all.
   * @range a number in (0, 1]
   */
  topP?: number | undefined
  /**
   * Keep the tokens that are at least this share as likely as the most likely one. Default: that of
   * generation_config.json, else 0: all.
   * @range a number in [0, 1]
   */
  minP?: number | undefined
  /**
   * Divides the logits of tokens that the prompt or the text holds, or multiplies them where they are below 0: above 1
   * they become less likely. Default: that of generation_config.json, else 1.
   * @range a finite number above 0
   */
  repetitionPenalty?: number | undefined
}

export type Sampling = Readonly<Record<keyof SamplingOptions, number>>

/** The top_k of transformers and transformers.js if generation_config.json samples and has none. */
const SAMPLED_TOP_K = 50

/** A value of generation_config.json that its option would not accept counts as missing. */
export function resolveSampling(
  options: SamplingOptions = {},
  config: Readonly<Record<string, unknown>> = {},
): Sampling {
  const given = (name: keyof SamplingOptions, key: string): number | undefined => {
    const fallback = config[key]
    return options[name] ?? (SAMPLING_OPTIONS[name].accepts(fallback) ? (fallback as number) : undefined)
  }
  const samples = config.do_sample === true
  const draws = samples || [options.topK, options.topP, options.minP].some((value) => value !== undefined)
  const temperature = given('temperature', 'temperature')
  return {
    temperature: draws ? (temperature ?? 1) : (options.temperature ?? 0),
    topK: given('topK', 'top_k') ?? (samples && config.top_k !== 0 ? SAMPLED_TOP_K : Number.POSITIVE_INFINITY),
    topP: given('topP', 'top_p') ?? 1,
    minP: given('minP', 'min_p') ?? 0,
    repetitionPenalty: given('repetitionPenalty', 'repetition_penalty') ?? 1,
  }
}
