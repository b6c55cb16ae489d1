// How the next token is chosen: the options and their defaults.

import { GENERATE_OPTIONS_DEFAULTS, SAMPLING_OPTIONS } from '../gen/options.js'

export const GENERATE_DEFAULTS = Object.freeze(GENERATE_OPTIONS_DEFAULTS)

/** How the next token is chosen from the logits. Options that are left out come from generation_config.json. */
export interface SamplingOptions {
  /**
   * 0 always takes the most likely token; 1 draws with the probabilities of the model; above 1 is more random. Default:
   * the value of generation_config.json if it samples (do_sample) or if `topK`, `topP` or `minP` is given, else
   * 0.
   * @range a finite number of at least 0
   */
  temperature?: number | undefined
  /**
   * Keep only this many of the most likely tokens. Default: the value of generation_config.json; 50 if that file
   * samples and has no value; else all.
   * @range an integer of at least 1, or Infinity
   */
  topK?: number | undefined
  /**
   * Keep the fewest most likely tokens whose probabilities sum to at least this. Default: the value of
   * generation_config.json, else 1, which keeps all.
   * @range a number in (0, 1]
   */
  topP?: number | undefined
  /**
   * Keep the tokens whose probability is at least this share of the largest. Default: the value of
   * generation_config.json, else 0, which keeps all.
   * @range a number in [0, 1]
   */
  minP?: number | undefined
  /**
   * Above 1, tokens of the prompt and of the text so far become less likely: their logits are divided by this number,
   * or multiplied if they are negative. Default: the value of generation_config.json, else 1.
   * @range a finite number above 0
   */
  repetitionPenalty?: number | undefined
  /**
   * Is taken off the logits of tokens that the text holds. The prompt does not count. Default 0.
   * @range a number in [-2, 2]
   */
  presencePenalty?: number | undefined
  /**
   * Is taken off the logits of tokens that the text holds, once for each time. The prompt does not count. Default 0.
   * @range a number in [-2, 2]
   */
  frequencyPenalty?: number | undefined
}

export type Sampling = Readonly<Record<keyof SamplingOptions, number>>

/** The top_k that transformers and transformers.js take if generation_config.json samples and does not set it. */
const SAMPLED_TOP_K = 50

/** Resolves the options. A value of generation_config.json that the option would not accept counts as missing. */
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
    presencePenalty: options.presencePenalty ?? 0,
    frequencyPenalty: options.frequencyPenalty ?? 0,
  }
}
