// Tied embeddings: one weight read as input and as output embedding. A layer on one of the two would change both, or be
// dropped by loaders, so that the user has to say what is meant.

import { MismatchError } from '../../base/errors.js'
import type { Checkpoint, CheckpointTensor } from '../../formats/checkpoint.js'
import { isHeadModule } from '../../peft/tied.js'
import type { BaseReplacement, LayerFactors } from './adapters.js'

/**
 * What happens to tied embeddings that an adapter changes. `refuse`: an error. `untie`: the output embedding gets a weight of
 * its own and config.json says so. `keep`: the one weight changes for both uses.
 */
export type TiedPolicy = 'refuse' | 'untie' | 'keep'

const EMBEDDINGS = /(^|\.)(embed_tokens|embed_in|wte|word_embeddings|shared)$/

export function isEmbeddingModule(module: string): boolean {
  return EMBEDDINGS.test(module)
}

export function isVocabularyModule(module: string): boolean {
  return isHeadModule(module) || isEmbeddingModule(module)
}

/** An input and an output embedding that are one weight. */
export interface TiedPair {
  /** Tensor names. The head's need not be stored. */
  readonly embedding: string
  readonly head: string
  /** The head's bias, where it is tied to one that is stored: both are untied with the embeddings. */
  readonly bias: { readonly stored: string; readonly head: string } | undefined
}

/** What output embeddings are called that are not stored: by a module beside them that is. All others: lm_head. */
const UNSTORED_HEADS: readonly (readonly [beside: RegExp, head: string])[] = [
  [/(^|\.)embed_in$/, 'embed_out'],
  [/^cls\.predictions\.transform\.dense$/, 'cls.predictions.decoder'],
  [/^predictions\.dense$/, 'predictions.decoder'],
  [/^lm_head\.dense$/, 'lm_head.decoder'],
  [/^vocab_transform$/, 'vocab_projector'],
  [/^generator_predictions\.dense$/, 'generator_lm_head'],
]

/** A part of an adapter that may change tied weights. */
interface Touching {
  readonly name: string
  /** Undefined for rows of a table of any length. */
  readonly d: number | undefined
  readonly k: number
}

/** config.json's own word, where it has one. */
export function tieSetting(config: Readonly<Record<string, unknown>> | undefined): boolean | undefined {
  const text = config?.text_config as Record<string, unknown> | null | undefined
  const value = text?.tie_word_embeddings ?? config?.tie_word_embeddings
  return typeof value === 'boolean' ? value : undefined
}

const HEADLESS = /(Model|For(Sequence|Token|Image)Classification|ForQuestionAnswering|ForMultipleChoice)$/
const NAMED_MODELS_WITH_HEAD = /LMHead|DoubleHeads|EncoderDecoder/

/** By the classes that config.json names: no output embedding that anything could be tied to. */
function isHeadless(config: Readonly<Record<string, unknown>> | undefined): boolean {
  const architectures = config?.architectures
  if (!Array.isArray(architectures) || architectures.length === 0) return false
  return architectures.every((name) => HEADLESS.test(String(name)) && !NAMED_MODELS_WITH_HEAD.test(String(name)))
}

/**
 * The tied weights that a layer of the adapters touches; undefined when none does, or the model has no output embedding.
 * Without a word in config.json the embeddings are tied when no output embedding is stored.
 */
export function findTiedPair(
  layers: readonly Touching[],
  checkpoint: Checkpoint,
  config: Readonly<Record<string, unknown>> | undefined,
): TiedPair | undefined {
  const touched = layers.find(({ name }) => isHeadModule(name)) ?? layers.find(({ name }) => isEmbeddingModule(name))
  if (touched === undefined) return undefined
  const setting = tieSetting(config)
  if (setting === false || (isHeadless(config) && !isHeadModule(touched.name))) return undefined
  const modules = [...checkpoint.tensors.keys()].flatMap((name) => (name.endsWith('.weight') ? name.slice(0, -7) : []))
  const embedding = isHeadModule(touched.name)
    ? modules.find((name) => EMBEDDINGS.test(name) && fits(checkpoint.tensors.get(`${name}.weight`)!, touched))
    : touched.name
  if (embedding === undefined) return undefined
  const unstored = UNSTORED_HEADS.find(([beside]) => modules.some((name) => beside.test(name)))
  const head = isHeadModule(touched.name) ? touched.name : (modules.find(isHeadModule) ?? unstored?.[1] ?? 'lm_head')
  const isTied = setting === true || !checkpoint.tensors.has(`${head}.weight`)
  if (!isTied) return undefined
  const bias = { stored: `${head.replace(/\.decoder$/, '')}.bias`, head: `${head}.bias` }
  const isBiasTied = checkpoint.tensors.has(bias.stored) && !checkpoint.tensors.has(bias.head)
  return { embedding: `${embedding}.weight`, head: `${head}.weight`, bias: isBiasTied ? bias : undefined }
}

/** The same for what adapters replace. */
export function findReplacedPair(
  replacements: readonly BaseReplacement[],
  checkpoint: Checkpoint,
  config: Readonly<Record<string, unknown>> | undefined,
): TiedPair | undefined {
  const modules = replacements.map(({ tensor, rows, info: { shape } }) => {
    return { name: tensor.slice(0, tensor.lastIndexOf('.')), d: rows === undefined ? shape[0] : undefined, k: shape[1] }
  })
  return findTiedPair(modules, checkpoint, config)
}

function fits({ info }: CheckpointTensor, { d, k }: Touching): boolean {
  return info.shape.length === 2 && info.shape[0] === (d ?? info.shape[0]) && info.shape[1] === k
}

/** Whether every layer of the tied weights adapts both alike, so that they stay tied without a choice. */
export function areTiedTogether(layers: readonly Pick<LayerFactors, 'name' | 'isTied'>[]): boolean {
  return layers.every(({ name, isTied }) => isTied || !isVocabularyModule(name))
}

export function tiedError({ embedding, head }: TiedPair, isHeadStored: boolean): MismatchError {
  return new MismatchError({
    where: head,
    what: isHeadStored
      ? `config.json ties it to ${embedding}, so that loaders would use one weight for both`
      : `the base stores no such weight: it is tied to ${embedding}`,
    expected: 'a choice for tied embeddings: untie or keep',
    hint:
      'untie writes the output embedding as a weight of its own and sets tie_word_embeddings to false, which gives what the ' +
      'adapter was trained for; keep changes the one weight for both uses',
  })
}
