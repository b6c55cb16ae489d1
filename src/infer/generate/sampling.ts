// How the next token is chosen: the options, their checks and their defaults.

import { checkArgument, numberKind, type OptionTable } from '../../base/options.js'

/** Default options of `generate`. */
export const GENERATE_DEFAULTS = Object.freeze({ maxNewTokens: 128, batchSize: 8 })

/** How the next token is chosen from the logits. What is left out is taken from the model's generation_config.json. */
export interface SamplingOptions {
  /**
   * 0 takes the most likely token. Default: that of generation_config.json where it samples (do_sample) or where topK,
   * topP or minP is given, else 0.
   */
  temperature?: number | undefined
  /**
   * Keep only this many most likely tokens. Default: that of generation_config.json; 50 where it samples without one;
   * else all.
   */
  topK?: number | undefined
  /**
   * Keep the fewest most likely tokens whose probabilities sum to at least this, in (0, 1]. Default: that of
   * generation_config.json, else 1: all.
   */
  topP?: number | undefined
  /**
   * Keep the tokens that are at least this share as likely as the most likely one, in [0, 1]. Default: that of
   * generation_config.json, else 0: all.
   */
  minP?: number | undefined
  /**
   * Divides the logits of tokens that the prompt or the text holds, or multiplies them where they are below 0: above 1
   * they become less likely. Default: that of generation_config.json, else 1.
   */
  repetitionPenalty?: number | undefined
}

/** The kind of each option. */
export const SAMPLING_KINDS: OptionTable<SamplingOptions> = {
  temperature: numberKind('a finite number of 0 or more', (value) => Number.isFinite(value) && value >= 0),
  topK: numberKind(
    'an integer of 1 or more',
    (value) => value >= 1 && (Number.isSafeInteger(value) || value === Number.POSITIVE_INFINITY),
  ),
  topP: numberKind('a number in (0, 1]', (value) => value > 0 && value <= 1),
  minP: numberKind('a number in [0, 1]', (value) => value >= 0 && value <= 1),
  repetitionPenalty: numberKind('a finite number above 0', (value) => Number.isFinite(value) && value > 0),
}

/** {@link SamplingOptions} with every choice made. */
export interface Sampling {
  readonly temperature: number
  readonly topK: number
  readonly topP: number
  readonly minP: number
  readonly repetitionPenalty: number
}

/** The top_k of transformers and transformers.js where generation_config.json samples and names none. */
const SAMPLED_TOP_K = 50

/**
 * Fills in defaults.
 *
 * @param config generation_config.json; values there that no option could have count as missing
 * @throws ConfigError naming the option that is out of range
 */
export function resolveSampling(
  options: SamplingOptions = {},
  config: Readonly<Record<string, unknown>> = {},
): Sampling {
  const given = (name: keyof SamplingOptions, key: string): number | undefined => {
    const value = options[name]
    if (value !== undefined) checkArgument(value, SAMPLING_KINDS[name], name)
    const own = config[key]
    return value ?? (SAMPLING_KINDS[name].accepts(own) ? (own as number) : undefined)
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
