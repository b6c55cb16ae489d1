// Tied embeddings: one weight read as input and as output embedding. A layer on one of the two would change both, or be
// dropped by loaders, so that the user has to say what is meant.

import { MismatchError } from '../../base/errors.js'
import type { Checkpoint, CheckpointTensor } from '../../formats/checkpoint.js'
import { isHeadModule } from '../../lora/tied.js'
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
}

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
  const touched = layers.find(({ name }) => isVocabularyModule(name))
  if (touched === undefined) return undefined
  const setting = tieSetting(config)
  if (setting === false || (isHeadless(config) && !isHeadModule(touched.name))) return undefined
  const modules = [...checkpoint.tensors.keys()].flatMap((name) => (name.endsWith('.weight') ? name.slice(0, -7) : []))
  const embedding = isHeadModule(touched.name)
    ? modules.find((name) => EMBEDDINGS.test(name) && fits(checkpoint.tensors.get(`${name}.weight`)!, touched))
    : touched.name
  if (embedding === undefined) return undefined
  const storedHead = modules.find(isHeadModule)
  const head = isHeadModule(touched.name)
    ? touched.name
    : (storedHead ?? (/embed_in$/.test(embedding) ? 'embed_out' : 'lm_head'))
  const isTied = setting === true || !checkpoint.tensors.has(`${head}.weight`)
  return isTied ? { embedding: `${embedding}.weight`, head: `${head}.weight` } : undefined
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
