// Encoder-decoders: the encoder reads a text or a sound, and the decoder learns to write the target. Every token of the
// target counts, including the one that ends it. The loss is the cross-entropy in nats per token.

import { DataError, UnsupportedError } from '../base/errors.js'
import { isObject } from '../base/options.js'
import { joinedUp } from '../base/tensor.js'
import { type JoinedInputs, joinedInputs } from '../graph/inputs/encoder-decoder.js'
import { inputFamily, OF_DECODER } from '../graph/inputs/family.js'
import { type Model, requireTokenizer, startToken } from '../graph/model-folder.js'
import type { Length } from '../graph/training/objective-graph.js'
import { readGraph } from '../graph/view/graph.js'
import type { Feeds } from '../runtime/runtime.js'
import { fieldsOf } from '../text/records.js'
import { checkVocabulary } from '../text/tokenizer.js'
import { eosOf } from './causal-lm.js'
import { checkSize, FEATURES_FIELD, featuresOf, HEAR } from './features.js'
import { NextTokens, PROBED_TARGETS, probeTargets, rowFeeds, targetsLength } from './next-tokens.js'
import type { EncodeContext, OpenTask, Task, TaskUse } from './task.js'
import {
  batchLength,
  encodeTexts,
  ownLength,
  PROBE_BATCHES,
  productLength,
  roundUp,
  tokenBatch,
  tokenLengths,
} from './token-batch.js'

/** A tokenized row. */
export interface Seq2SeqExample {
  /** Input of the encoder: tokens, or a sound (bands, times). */
  readonly source: Int32Array | Float32Array
  /** Output of the decoder, with the token that ends a text. */
  readonly target: Int32Array
}

export const seq2seq: Task<TextPair, Seq2SeqExample> = {
  name: 'seq2seq',
  peftType: 'SEQ_2_SEQ_LM',
  learns: 'to write a text for another one, as T5 and BART do',
  records: [{ text: 'The captain looked at the sea all night.', target: 'The captain looked at the sea.' }],
  use: {
    command: ['generate', '--prompt', 'The'],
    pipeline: 'text2text-generation',
    autoClass: 'AutoModelForSeq2SeqLM',
    onlyMerged: true,
  },
  lowerIsBetter: ['perplexity'],

  check(model) {
    const graph = readGraph(model.onnx)
    if (inputFamily(graph)?.encoderGraph === 'joined') return void joinedInputs(graph)
    const { encoder, decoder } = model.graphs
    const [what, hint] =
      encoder !== undefined && decoder === undefined
        ? ['an encoder without its decoder', 'Put decoder_model_merged.onnx or decoder_model.onnx beside it']
        : inputFamily(graph)?.encoderGraph === 'separate'
          ? ['a decoder without its encoder', 'Put encoder_model.onnx beside it, and open the folder of both']
          : ['no encoder-decoder', undefined]
    throw new UnsupportedError({
      where: model.onnxPath,
      what: `it is ${what}`,
      expected:
        'an encoder and a decoder, such as those of T5 and BART: encoder_model.onnx and decoder_model_merged.onnx',
      got: Object.values(model.graphs).join(', '),
      hint,
    })
  },

  parse: parseTextPair,

  encode(row, context) {
    const read = encodeSource(row, context)
    const written = encodeTarget(row, context)
    const example = { source: read.source, target: Int32Array.from(written.ids) }
    return { examples: [example], isTruncated: read.isCut || written.isCut }
  },

  question: ({ source, target }) => (source.kind === 'text' ? { prompt: source.text, answer: target } : undefined),

  tokens({ source, target }) {
    const read = source instanceof Int32Array ? source : []
    return { ids: Int32Array.from([...read, ...target]), counts: (i) => i >= read.length }
  },

  open: (model) => new Seq2Seq(model),
}

function encodeSource({ source, where }: TextPair, { model, maxLength }: EncodeContext) {
  const { features: size } = joinedInputs(readGraph(model.onnx))
  if ((size === undefined) !== (source.kind === 'text')) {
    throw new DataError({
      where,
      what: size === undefined ? 'the model reads texts, not sounds' : 'the model reads sounds, not texts',
      expected: size === undefined ? '"text" and "target"' : '"input_features": (bands, times), and "text"',
    })
  }
  if (source.kind === 'text') {
    const { inputIds, isTruncated } = encodeTexts(model, source.text, undefined, maxLength)
    return { source: inputIds, isCut: isTruncated }
  }
  return { source: checkSize(source.values, size as readonly [number, number], where), isCut: false }
}

/** Encodes the target with one end token, and without the token that the decoder begins with. */
function encodeTarget({ target: text, where }: TextPair, { model, maxLength, isLimited }: EncodeContext) {
  const tokenizer = requireTokenizer(model)
  const eosTokenId = eosOf(model)
  const start = startToken(model)
  const encode = (length: number) => {
    const { ids } = tokenizer.encodeTexts(text, undefined, length)
    const written = ids[0] === start ? ids.slice(1) : ids
    return written.at(-1) === eosTokenId ? written : [...written, eosTokenId]
  }
  const ids = encode(Number.POSITIVE_INFINITY)
  checkVocabulary(ids, { tokenizer, vocabularySize: model.vocabularySize })
  const limit = Math.min(maxLength, positionsOf(model))
  if (ids.length <= limit) return { ids, isCut: false }
  if (isLimited) {
    const cut = encode(limit)
    return { ids: cut.length > limit ? encode(limit - (cut.length - limit)) : cut, isCut: true }
  }
  throw new DataError({
    where: `${where}, target`,
    what: 'longer than the model can write',
    expected: `at most ${limit} tokens`,
    got: String(ids.length),
    hint: `Shorten it, or cut all texts that are too long: \`maxLength: ${limit}\``,
  })
}

function positionsOf({ config, contextLength = Number.POSITIVE_INFINITY }: Model): number {
  const { max_target_positions: positions } = config
  return typeof positions === 'number' ? positions : contextLength
}

const PROBED_WIDTHS = [4, 9] as const

const DECODER_IDS = `${OF_DECODER}input_ids`

class Seq2Seq extends NextTokens<Seq2SeqExample> implements OpenTask<Seq2SeqExample> {
  readonly probe: OpenTask['probe']
  readonly plainUse: TaskUse | undefined
  readonly #inputs: JoinedInputs
  readonly #start: number

  constructor(model: Model) {
    super(model)
    this.#inputs = joinedInputs(readGraph(model.onnx))
    this.#start = startToken(model)
    const { features } = this.#inputs
    // PEFT's class passes input_ids even to a model of sounds: https://github.com/huggingface/peft/issues/1988
    this.plainUse =
      features === undefined
        ? undefined
        : { pipeline: 'automatic-speech-recognition', autoClass: 'AutoModelForSpeechSeq2Seq' }
    const [first, second] = PROBE_BATCHES.map(({ batch, sequence }, i) => {
      const source = features === undefined ? new Int32Array(sequence) : new Float32Array(features[0] * features[1])
      const examples = Array(batch).fill({ source, target: new Int32Array(PROBED_WIDTHS[i]) })
      return { ...this.#feeds(examples, sequence, PROBED_WIDTHS[i]), ...probeTargets(PROBED_TARGETS[i]) }
    })
    const read = features === undefined ? tokenLengths() : soundLengths(model, features[1])
    const written = ownLength('written', PROBED_WIDTHS, { input: DECODER_IDS, axis: 1 })
    const rows = productLength('written rows', batchLength(DECODER_IDS), written)
    this.probe = { feeds: [first, second], lengths: [...read, written, rows, targetsLength()] }
  }

  cost({ source, target }: Seq2SeqExample): number {
    return (source instanceof Int32Array ? source.length : 0) + target.length
  }

  /** Ignores `length`, which covers source and target together: each side is padded to its own length. */
  collate(examples: readonly Seq2SeqExample[]): Feeds {
    const longest = (lengths: readonly number[], limit: number) => Math.min(roundUp(Math.max(...lengths)), limit)
    const { contextLength = Number.POSITIVE_INFINITY } = this.model
    const sources = examples.map(({ source }) => source.length)
    const targets = examples.map(({ target }) => target.length)
    const width = longest(targets, positionsOf(this.model))
    const rows = targets.flatMap((length, row) => Array.from({ length }, (_, i) => row * width + i))
    const written = examples.flatMap(({ target }) => [...target])
    return { ...this.#feeds(examples, longest(sources, contextLength), width), ...rowFeeds(rows, written) }
  }

  protected targetsOf({ target }: Seq2SeqExample): Int32Array {
    return target
  }

  #feeds(examples: readonly Seq2SeqExample[], sequence: number, width: number): Feeds {
    // The decoder reads the target shifted by one token.
    const read = examples.map(({ target }) => Int32Array.from([this.#start, ...target.subarray(0, -1)]))
    const sources = examples.map(({ source }) => source)
    return this.#inputs.feeds(
      this.#inputs.features === undefined
        ? tokenBatch(sources, sequence, this.model.padTokenId)
        : { batch: examples.length, features: joinedUp(sources) },
      tokenBatch(read, width, this.model.padTokenId),
    )
  }
}

/** Lengths of a run over sounds. The encoder halves the times, unless config.json says otherwise. */
function soundLengths({ config }: Model, times: number): Length[] {
  const { max_source_positions: positions } = config
  const count = typeof positions === 'number' ? positions : Math.ceil(times / 2)
  const batch = batchLength(DECODER_IDS)
  return [batch, productLength('positions', batch, { name: 'times', probed: [count, count], of: () => count })]
}

/** A row of data. */
export interface TextPair {
  readonly source: Source
  readonly target: string
  readonly where: string
}

/** The input: a text, or features of a sound (bands, times). */
type Source =
  | { readonly kind: 'text'; readonly text: string }
  | { readonly kind: 'features'; readonly values: Float32Array }

const TEXTS = ['text', 'input', 'source', 'question', 'prompt', 'document', 'article', 'dialogue']
const TARGETS = ['target', 'output', 'label', 'summary', 'highlights', 'translation', 'answer', 'completion']

const SPOKEN = ['target', 'label', 'text', 'sentence', 'transcription', 'transcript']

const RENAME = "Name your fields, as in `columns: { text: 'article', target: 'summary' }`"

function parseTextPair(row: unknown, where: string): TextPair {
  const record = isObject(row) ? row : {}
  const isThere = (name: string) => record[name] !== undefined && record[name] !== null
  const isInstruction = isThere('instruction')
  const isSound = isThere(FEATURES_FIELD)
  const sources = isSound ? [FEATURES_FIELD] : isInstruction ? ['instruction'] : TEXTS.filter(isThere)
  const targets = (isSound ? SPOKEN : TARGETS).filter(isThere)
  const refuse = (what: string, hint: string) =>
    new DataError({
      where,
      what,
      expected: '"text" and "target", or names such as "input", "question", "summary", "translation", "answer"',
      got: fieldsOf(record),
      hint,
    })
  if (sources.length > 1 || targets.length > 1) {
    throw refuse('more than one field could be the text or the target', RENAME)
  }
  if (sources.length === 0) throw refuse('no text to read', isThere('audio') ? HEAR : RENAME)
  const value = record[sources[0]]
  const source = isSound
    ? ({ kind: 'features', values: featuresOf(value, where) } as const)
    : textOf(record, value, isInstruction)
  if (source === undefined) throw refuse('no text to read', RENAME)
  const target = record[targets[0]]
  if (typeof target !== 'string') {
    const isPair = isObject(target)
    const hint = isPair ? 'Write both languages as fields of their own: { "text": …, "target": … }' : RENAME
    throw refuse('no target: a text that the model learns to write', hint)
  }
  if (source.kind === 'text') refuseEmpty(source.text, `${where}, text`)
  refuseEmpty(target, `${where}, target`)
  return { source, target, where }
}

function refuseEmpty(text: string, where: string): void {
  if (text.trim() !== '') return
  throw new DataError({ where, what: 'it is empty', expected: 'at least one character' })
}

/** Joins an instruction and its input, as records of other tasks do. */
function textOf(record: Readonly<Record<string, unknown>>, value: unknown, isInstruction: boolean): Source | undefined {
  if (typeof value !== 'string') return undefined
  const { input } = record
  const isLonger = isInstruction && typeof input === 'string' && input !== ''
  return { kind: 'text', text: isLonger ? `${value}\n\n${input}` : value }
}
