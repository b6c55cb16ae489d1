// Encoder-decoders: the encoder reads a text, and the decoder learns to write the target. Every token of the
// target counts, including the one that ends it. The loss is the cross-entropy in nats per token.

import { DataError, UnsupportedError } from '../../core/base/errors.js'
import { isObject, objectOf } from '../../core/base/options.js'
import { joinedFeeds } from '../../model/inputs/encoder-decoder.js'
import { inputFamily, OF_DECODER } from '../../model/inputs/family.js'
import { encodeTexts, roundUp, tokenBatch } from '../../model/inputs/token-batch.js'
import { type Model, requireTokenizer, startToken } from '../../model/model-folder.js'
import { checkFields, fieldsOf } from '../../model/text/records.js'
import { checkVocabulary } from '../../model/text/tokenizer.js'
import type { Feeds } from '../../onnx/runtime/runtime.js'
import { readGraph } from '../../onnx/view/graph.js'
import { eosOf } from './causal-lm.js'
import { NextTokens, PROBED_TARGETS, probeTargets, rowFeeds, targetsLength } from './next-tokens.js'
import type { EncodeContext, OpenTask, Task } from './task.js'
import { batchLength, ownLength, PROBE_BATCHES, productLength, tokenLengths } from './token-probe.js'

export interface Seq2SeqExample {
  /** Input of the encoder. */
  readonly source: Int32Array
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
    if (inputFamily(graph)?.encoderGraph === 'joined') return void joinedFeeds(graph)
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

  reads: (row) => [row.instruction === undefined ? TEXTS : ['instruction', 'input'], TARGETS].flat(),

  parse: parseTextPair,

  encode(row, context) {
    const { inputIds: source, isTruncated } = encodeTexts(context.model, row.source, undefined, context.maxLength)
    const { ids, isCut } = encodeTarget(row, context)
    return { examples: [{ source, target: Int32Array.from(ids) }], isTruncated: isTruncated || isCut }
  },

  question: ({ source, target }) => ({ prompt: source, answer: target }),

  tokens: ({ source, target }) => ({ ids: Int32Array.from([...source, ...target]), counts: (i) => i >= source.length }),

  open: (model) => new Seq2Seq(model),
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

function positionsOf({
  config,
  contextLength = Number.POSITIVE_INFINITY,
}: Pick<Model, 'config' | 'contextLength'>): number {
  const { max_target_positions: positions } = config
  return typeof positions === 'number' ? positions : contextLength
}

const PROBED_WIDTHS = [4, 9] as const

const DECODER_IDS = `${OF_DECODER}input_ids`

class Seq2Seq extends NextTokens<Seq2SeqExample> implements OpenTask<Seq2SeqExample> {
  readonly probe: OpenTask['probe']
  readonly #feedsOf: ReturnType<typeof joinedFeeds>
  readonly #start: number

  constructor(model: Model) {
    super(model)
    this.#feedsOf = joinedFeeds(readGraph(model.onnx))
    this.#start = startToken(model)
    const [first, second] = PROBE_BATCHES.map(({ batch, sequence }, i) => {
      const examples = Array(batch).fill({ source: new Int32Array(sequence), target: new Int32Array(PROBED_WIDTHS[i]) })
      return { ...this.#feeds(examples, sequence, PROBED_WIDTHS[i]), ...probeTargets(PROBED_TARGETS[i]) }
    })
    const written = ownLength('written', PROBED_WIDTHS, { input: DECODER_IDS, axis: 1 })
    const rows = productLength('written rows', batchLength(DECODER_IDS), written)
    this.probe = { feeds: [first, second], lengths: [...tokenLengths(), written, rows, targetsLength()] }
  }

  cost({ source, target }: Seq2SeqExample): number {
    return source.length + target.length
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
    const { padTokenId } = this.model
    return this.#feedsOf(tokenBatch(sources, sequence, padTokenId), tokenBatch(read, width, padTokenId))
  }
}

export interface TextPair {
  readonly source: string
  readonly target: string
  readonly where: string
}

const TEXTS = ['text', 'input', 'source', 'question', 'prompt', 'document', 'article', 'dialogue']
const TARGETS = ['target', 'output', 'label', 'summary', 'highlights', 'translation', 'answer', 'completion']

const RENAME = "Name your fields, as in `columns: { text: 'article', target: 'summary' }`"

function parseTextPair(row: unknown, where: string): TextPair {
  const record = objectOf(row)
  const isThere = (name: string) => record[name] !== undefined && record[name] !== null
  const isInstruction = isThere('instruction')
  const sources = isInstruction ? ['instruction'] : TEXTS.filter(isThere)
  const targets = TARGETS.filter(isThere)
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
  checkFields(record, [], where)
  const source = textOf(record, record[sources[0]], isInstruction)
  if (source === undefined) throw refuse('no text to read', RENAME)
  const target = record[targets[0]]
  if (typeof target !== 'string') {
    const isPair = isObject(target)
    const hint = isPair ? 'Write both languages as fields of their own: { "text": …, "target": … }' : RENAME
    throw refuse('no target: a text that the model learns to write', hint)
  }
  refuseEmpty(source, `${where}, text`)
  refuseEmpty(target, `${where}, target`)
  return { source, target, where }
}

function refuseEmpty(text: string, where: string): void {
  if (text.trim() !== '') return
  throw new DataError({ where, what: 'it is empty', expected: 'at least one character' })
}

/** Joins an instruction and its input, as records of other tasks do. */
function textOf(record: Readonly<Record<string, unknown>>, value: unknown, isInstruction: boolean): string | undefined {
  if (typeof value !== 'string') return undefined
  const { input } = record
  const isLonger = isInstruction && typeof input === 'string' && input !== ''
  return isLonger ? `${value}\n\n${input}` : value
}
