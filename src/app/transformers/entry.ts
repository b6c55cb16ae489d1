/// <reference lib="esnext.disposable" preserve="true" />
// `lowrank/transformers`: adapters in the pipelines of transformers.js.

/** @module lowrank/transformers */

import type { Source } from '../../core/base/bytes.js'
import type { ChatMessage } from '../../model/text/chat.js'
import type { AdapterCallOptions, AdapterPipelineParts } from './pipelines.js'
import type { PipelineOptions, PipelineTask } from './verbs.js'

export type { AdapterCallOptions, AdapterPipelineParts, PipelineOptions, PipelineTask }

/** A text that a model continued. */
export interface GeneratedText {
  /** The prompt and the new text. With `return_full_text: false`, only the new text. */
  generated_text: string
}

/** A chat that a model answered. */
export interface GeneratedChat {
  /** The chat with the answer as its last message. */
  generated_text: ChatMessage[]
}

/** A label and its probability. */
export interface LabelScore {
  label: string
  score: number
}

/**
 * The result of zero-shot classification for a text: the labels that the caller passed, the most likely first, with
 * their scores.
 */
export interface SequenceLabels {
  sequence: string
  labels: string[]
  scores: number[]
}

/** A text whose mask token is filled. */
export interface FilledText {
  sequence: string
  score: number
  token: number
  token_str: string
}

/** The tag of a token. */
export interface TokenScore {
  entity: string
  score: number
  /** The index of the token, including special tokens. */
  index: number
  word: string
}

/** The members of a transformers.js tensor that are used here. */
export interface FeatureTensor {
  readonly type: string
  readonly dims: number[]
  readonly data: ArrayLike<number>
  tolist(): unknown[]
}

/** How the pipelines of each task are called. */
export interface PipelineCalls {
  'text-generation': {
    (text: string, options?: AdapterCallOptions): Promise<GeneratedText[]>
    (texts: readonly string[], options?: AdapterCallOptions): Promise<GeneratedText[][]>
    (chat: readonly ChatMessage[], options?: AdapterCallOptions): Promise<GeneratedChat[]>
    (chats: readonly (readonly ChatMessage[])[], options?: AdapterCallOptions): Promise<GeneratedChat[][]>
  }
  'feature-extraction': (texts: string | readonly string[], options?: AdapterCallOptions) => Promise<FeatureTensor>
  'text-classification': {
    (text: string, options?: AdapterCallOptions): Promise<LabelScore[]>
    (texts: readonly string[], options?: AdapterCallOptions): Promise<LabelScore[] | LabelScore[][]>
  }
  'zero-shot-classification': {
    (text: string, labels: readonly string[], options?: AdapterCallOptions): Promise<SequenceLabels>
    (texts: readonly string[], labels: readonly string[], options?: AdapterCallOptions): Promise<SequenceLabels[]>
  }
  'fill-mask': {
    (text: string, options?: AdapterCallOptions): Promise<FilledText[]>
    (texts: readonly string[], options?: AdapterCallOptions): Promise<FilledText[][]>
  }
  'text2text-generation': (texts: string | readonly string[], options?: AdapterCallOptions) => Promise<GeneratedText[]>
  summarization: (
    texts: string | readonly string[],
    options?: AdapterCallOptions,
  ) => Promise<{ summary_text: string }[]>
  translation: (
    texts: string | readonly string[],
    options?: AdapterCallOptions,
  ) => Promise<{ translation_text: string }[]>
  'token-classification': {
    (text: string, options?: AdapterCallOptions): Promise<TokenScore[]>
    (texts: readonly string[], options?: AdapterCallOptions): Promise<TokenScore[][]>
  }
  /** A picture is its path or URL, a Blob, a canvas, or a RawImage of transformers.js. */
  'image-classification': {
    (pictures: readonly (string | object)[], options?: AdapterCallOptions): Promise<LabelScore[][]>
    (picture: string | object, options?: AdapterCallOptions): Promise<LabelScore[]>
  }
  'image-to-text': {
    (pictures: readonly (string | object)[], options?: AdapterCallOptions): Promise<GeneratedText[][]>
    (picture: string | object, options?: AdapterCallOptions): Promise<GeneratedText[]>
  }
}

/** A pipeline whose calls choose an adapter. */
export type AdapterPipeline<Task extends PipelineTask> = PipelineCalls[Task] & AdapterPipelineParts

/**
 * Makes a pipeline of transformers.js for a model that lowrank opens. Its weights are in memory once, and each call
 * chooses an adapter. Calls with different adapters may overlap. Needs @huggingface/transformers 4.3 or later.
 *
 * @param task a task of {@link PipelineCalls}. Tasks that write a text for another text or for a picture need an
 *   encoder graph and a decoder graph
 * @param source any source that `loadModel` accepts: a path (not in browsers), `org/name`, a URL, picked files or a
 *   Directory
 * @returns the pipeline. Its calls take the options of transformers.js, and also `adapter`. `session.add` adds adapters
 *   later
 * @throws UnsupportedError for another task, an older transformers.js, a model type that transformers.js does not
 *   support, or a model of several graphs; MismatchError when an adapter is of another model, or this process has two
 *   ONNX Runtimes; RuntimeError when @huggingface/transformers is not installed or the graph does not open; ConfigError
 *   for an option that is not usable; FileError and FormatError when files are missing or cannot be read
 *
 * @example
 * import { pipelineWithAdapters } from 'lowrank/transformers'
 *
 * const write = await pipelineWithAdapters('text-generation', 'models/union-3m', {
 *   adapters: { peft: 'tests/golden/peft/rslora' },
 * })
 * const [{ generated_text }] = await write('And the people', { adapter: 'peft', max_new_tokens: 20 })
 * console.log(generated_text)
 * await write.dispose()
 */
export async function pipelineWithAdapters<Task extends PipelineTask>(
  task: Task,
  source: Source,
  options?: PipelineOptions,
): Promise<AdapterPipeline<Task>> {
  const verbs = await import('./verbs.js')
  return (await verbs.pipelineWithAdapters(task, source, options)) as unknown as AdapterPipeline<Task>
}
