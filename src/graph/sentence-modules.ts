// Reads settings of sentence-transformers: modules.json lists what follows the encoder, and 1_Pooling/config.json has
// the pooling.

import { type Directory, readJsonIfThere } from '../base/bytes.js'
import { objectOf } from '../base/options.js'

/** How the vectors of a text's tokens become one vector. */
export type Pooling = (typeof POOLINGS)[number]

export const POOLINGS = ['mean', 'cls'] as const

/** The settings of a folder for vectors of texts. */
export interface SentenceModules {
  /** Default `mean`. Other values than those of {@link Pooling} are not implemented. */
  readonly pooling: string
  /** Whether vectors are scaled to length 1. */
  readonly normalize: boolean
  /** Types of other modules, such as Dense. */
  readonly others: readonly string[]
  /** Longer texts are cut to so many tokens. Default: as many as the model takes. */
  readonly maxLength: number | undefined
  /** The default prompt, which every text begins with; may be ''. */
  readonly prompt: string
}

const MODES: Readonly<Record<string, string>> = {
  pooling_mode_mean_tokens: 'mean',
  pooling_mode_cls_token: 'cls',
  pooling_mode_max_tokens: 'max',
  pooling_mode_mean_sqrt_len_tokens: 'mean_sqrt_len',
  pooling_mode_weightedmean_tokens: 'weightedmean',
  pooling_mode_lasttoken: 'lasttoken',
}

export async function readSentenceModules(directory: Directory): Promise<SentenceModules> {
  const list = await readJsonIfThere(directory, 'modules.json')
  const modules = Array.isArray(list) ? list.map(objectOf) : []
  const typeOf = ({ type }: Record<string, unknown>) => String(type).replace(/^.*\./, '')
  const pooling = modules.find((module) => typeOf(module) === 'Pooling')
  const path = typeof pooling?.path === 'string' && pooling.path !== '' ? pooling.path : '1_Pooling'
  const config = objectOf(await readJsonIfThere(directory, `${path}/config.json`))
  const bertConfig = objectOf(await readJsonIfThere(directory, 'sentence_bert_config.json'))
  const tokenizer = list === undefined ? {} : objectOf(await readJsonIfThere(directory, 'tokenizer_config.json'))
  // sentence-transformers 6 writes the limit only to tokenizer_config.json.
  const length = bertConfig.max_seq_length ?? tokenizer.model_max_length
  const settings = objectOf(await readJsonIfThere(directory, 'config_sentence_transformers.json'))
  const named = objectOf(settings.prompts)[String(settings.default_prompt_name)]
  const prompt = typeof named === 'string' ? named : ''
  return {
    // A pooling without the prompt is not implemented: this name is refused later.
    pooling: config.include_prompt === false && prompt !== '' ? `${modeOf(config)} without the prompt` : modeOf(config),
    prompt,
    normalize: modules.some((module) => typeOf(module) === 'Normalize'),
    others: modules.map(typeOf).filter((type) => !/^(Transformer|Pooling|Normalize|Dropout)$/.test(type)),
    maxLength: Number.isSafeInteger(length) && (length as number) > 1 ? (length as number) : undefined,
  }
}

/** Newer configs name the mode, older ones have a switch for each. Several modes are joined by +. */
function modeOf(config: Readonly<Record<string, unknown>>): string {
  const named = config.pooling_mode
  if (named !== undefined) return [named].flat().map(String).join('+')
  const on = Object.entries(MODES).filter(([key]) => config[key] === true)
  return on.length === 0 ? 'mean' : on.map(([, mode]) => mode).join('+')
}
