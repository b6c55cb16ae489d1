// Settings of sentence-transformers: modules.json lists what follows the encoder, 1_Pooling/config.json the pooling.

import { type Directory, readJsonIfThere } from '../core/base/bytes.js'
import { objectOf } from '../core/base/options.js'
import type { DenseLayer } from './dense-layer.js'

/** How the vectors of a text's tokens become one vector, in the words of sentence-transformers. */
export type Pooling = (typeof POOLINGS)[number]

export const POOLINGS = ['cls', 'max', 'mean', 'mean_sqrt_len_tokens', 'weightedmean', 'lasttoken'] as const

/** The settings of a folder for vectors of texts. */
export interface SentenceModules {
  /** One of {@link POOLINGS}, or several joined by `+`, whose vectors stand side by side. Default `mean`. */
  readonly pooling: string
  /** False if the tokens of the prompt do not count in the pooling. */
  readonly includesPrompt: boolean
  /** True if vectors are scaled to length 1. */
  readonly normalize: boolean
  /** The modules after the pooling, in order. */
  readonly layers: readonly SentenceLayer[]
  /** The types of modules that lowrank does not know. */
  readonly others: readonly string[]
  /** Longer texts are cut to this number of tokens. Undefined: the model's maximum. */
  readonly maxLength: number | undefined
  /** True if texts are lowercased first. sentence-transformers 6 has tokenizer.json do this. */
  readonly lowersCase: boolean
  /** The default prompt, which every text begins with; may be ''. */
  readonly prompt: string
  /** The prompts of queries and of documents. */
  readonly prompts: Prompts
  /** True if a reranker's scores stay as they are; most go through a sigmoid. */
  readonly hasRawScores: boolean
}

/** What a text is for. */
export type InputType = 'query' | 'document'

/** What is put before texts, by what they are for. */
export type Prompts = Readonly<Partial<Record<InputType, string>>>

/**
 * Returns the prompt of a text. The default prompt is for texts without a type, as in sentence-transformers, and also
 * for models that have no other prompts.
 */
export function promptOf(
  { prompt, prompts }: Pick<SentenceModules, 'prompt' | 'prompts'>,
  type: InputType | undefined,
  own: Prompts | undefined,
): string {
  const all = { ...prompts, ...own }
  return type === undefined || Object.keys(all).length === 0 ? prompt : (all[type] ?? '')
}

export function readPrompts(settings: Readonly<Record<string, unknown>>): Prompts {
  const named = objectOf(settings.prompts)
  const text = (...names: string[]) => names.map((name) => named[name]).find((prompt) => typeof prompt === 'string')
  const found = { query: text('query'), document: text('document', 'passage', 'corpus') }
  return Object.fromEntries(Object.entries(found).filter(([, prompt]) => prompt !== undefined))
}

/** Opens a Dense module; undefined for Normalize. */
export type SentenceLayer = (() => Promise<DenseLayer>) | undefined

/** In the order in which sentence-transformers puts the vectors of several modes side by side. */
const MODES: Readonly<Record<string, Pooling>> = {
  pooling_mode_cls_token: 'cls',
  pooling_mode_max_tokens: 'max',
  pooling_mode_mean_tokens: 'mean',
  pooling_mode_mean_sqrt_len_tokens: 'mean_sqrt_len_tokens',
  pooling_mode_weightedmean_tokens: 'weightedmean',
  pooling_mode_lasttoken: 'lasttoken',
}

export async function readSentenceModules(directory: Directory): Promise<SentenceModules> {
  const list = await readJsonIfThere(directory, 'modules.json')
  const modules = Array.isArray(list) ? list.map(objectOf) : []
  const typeOf = ({ type }: Record<string, unknown>) => String(type).replace(/^.*\./, '')
  const pooling = modules.find((module) => typeOf(module) === 'Pooling')
  const path = typeof pooling?.path === 'string' && pooling.path !== '' ? pooling.path : '1_Pooling'
  const files = [`${path}/config.json`, 'sentence_bert_config.json', 'config_sentence_transformers.json']
  if (list !== undefined) files.push('tokenizer_config.json')
  const read = await Promise.all(files.map((file) => readJsonIfThere(directory, file)))
  const [config, bertConfig, settings, tokenizer] = [...read, undefined].map(objectOf)
  // sentence-transformers 6 writes the limit only to tokenizer_config.json.
  const length = bertConfig.max_seq_length ?? tokenizer.model_max_length
  const named = objectOf(settings.prompts)[String(settings.default_prompt_name)]
  const prompt = typeof named === 'string' ? named : ''
  const later = modules.filter((module) => !/^(Transformer|Pooling|Dropout)$/.test(typeOf(module)))
  return {
    pooling: modeOf(config),
    includesPrompt: config.include_prompt !== false,
    prompt,
    prompts: readPrompts(settings),
    hasRawScores: /(^|\.)Identity$/.test(String(await activationOf(directory, settings))),
    lowersCase: bertConfig.do_lower_case === true,
    normalize: modules.some((module) => typeOf(module) === 'Normalize'),
    layers: later.map((module) => (typeOf(module) === 'Dense' ? opener(directory, String(module.path)) : undefined)),
    others: later.map(typeOf).filter((type) => !/^(Normalize|Dense)$/.test(type)),
    maxLength: Number.isSafeInteger(length) && (length as number) > 1 ? (length as number) : undefined,
  }
}

/** Since version 5.7, CrossEncoder has a file of its own; before, config.json told the class. */
async function activationOf(directory: Directory, settings: Readonly<Record<string, unknown>>): Promise<unknown> {
  if (settings.activation_fn !== undefined) return settings.activation_fn
  const config = objectOf(await readJsonIfThere(directory, 'config.json'))
  return objectOf(config.sentence_transformers).activation_fn ?? config.sbert_ce_default_activation_function
}

/** Newer configs name the mode, older ones have a switch for each. Several modes are joined by +. */
function modeOf(config: Readonly<Record<string, unknown>>): string {
  const named = config.pooling_mode
  if (named !== undefined) return [named].flat().map(String).join('+')
  const on = Object.entries(MODES).filter(([key]) => config[key] === true)
  return on.length === 0 ? 'mean' : on.map(([, mode]) => mode).join('+')
}

function opener(directory: Directory, path: string): () => Promise<DenseLayer> {
  let opened: Promise<DenseLayer> | undefined
  const open = async () => (await import('./dense-layer.js')).openDense(directory, path)
  return () => {
    opened ??= open()
    return opened
  }
}
