// Reads the facts about a base that a GGUF adapter needs, from its config.json.

import { type Directory, readJson } from '../../../core/base/bytes.js'
import { ConfigError, FormatError } from '../../../core/base/errors.js'
import { objectOf } from '../../../core/base/options.js'
import { modelType } from '../../../model/families/families.js'
import { type GgufNames, namesOfModel } from './names.js'

export interface GgufBase {
  readonly names: GgufNames
  heads(): number
  keyHeads(): number
  /** The width of a token's vector; undefined if the base does not tell it. */
  readonly hidden: number | undefined
  /** How many experts a layer has; undefined if it has none or the base does not tell it. */
  readonly experts: number | undefined
  /** True if the output layer uses the weights of the input embedding. */
  readonly isTied: boolean
}

/** Throws ConfigError if the folder has no config.json. */
export async function readBase(directory: Directory): Promise<GgufBase> {
  if (!(await directory.has('config.json'))) {
    throw new ConfigError({
      where: 'base',
      what: `${directory.name} does not say what the model is`,
      expected: 'a folder with the model’s config.json',
    })
  }
  const where = `${directory.name}/config.json`
  const whole = objectOf(await readJson(directory, 'config.json'))
  const config = { ...whole, ...objectOf(whole.text_config) }
  const [model] = Array.isArray(whole.architectures) ? whole.architectures : []
  if (typeof model !== 'string') {
    throw new FormatError({ where: `${where}: architectures`, what: 'missing', expected: 'the class of the model' })
  }
  const names = namesOfModel(model, where)
  const count = (...keys: string[]) => {
    const found = keys.map((key) => config[key]).find((value) => Number.isSafeInteger(value) && (value as number) > 0)
    return found as number | undefined
  }
  const heads = count('num_attention_heads', 'n_head')
  const keyHeads = count('num_key_value_heads') ?? heads
  const need = (value: number | undefined): number => {
    if (value !== undefined) return value
    throw new FormatError({
      where: `${where}: num_attention_heads`,
      what: 'missing: the order of q and k depends on it',
    })
  }
  const tied = config.tie_word_embeddings ?? whole.tie_word_embeddings
  return {
    names,
    heads: () => need(heads),
    keyHeads: () => need(keyHeads),
    hidden: count('hidden_size', 'n_embd'),
    experts: count('num_local_experts', 'num_experts', 'n_routed_experts'),
    isTied: typeof tied === 'boolean' ? tied : modelType(whole.model_type).isTied === true,
  }
}
