// Encoder-decoders: the encoder reads a whole text, and the decoder learns to write another one for it. Every token of the target counts,
// its end included. The loss is the cross-entropy in nats per token.

import { DataError, FormatError, UnsupportedError } from '../base/errors.js'
import { TensorProto_DataType as DataType } from '../formats/onnx/gen/onnx_pb.js'
import { type JoinedInputs, joinedInputs, OF_DECODER, startToken } from '../graph/inputs/encoder-decoder.js'
import { inputFamily } from '../graph/inputs/family.js'
import { type Model, requireTokenizer } from '../graph/model-folder.js'
import type { Length } from '../graph/training/objective.js'
import type { ObjectiveGraph } from '../graph/training/objective-graph.js'
import type { Value } from '../graph/view/builder.js'
import { readGraph } from '../graph/view/read-graph.js'
import type { Feeds, RuntimeTensor } from '../runtime/runtime.js'
import { checkVocabulary } from '../text/records.js'
import type { Tokenizer } from '../text/tokenizer.js'
import { checkWidth } from './causal-lm.js'
import { nextTokenLoss, PROBED_TARGETS, probeTargets, rowFeeds, targetsLength } from './next-tokens.js'
import type { EncodeContext, OpenTask, Task } from './task.js'
import { parseTextPair, type TextPair } from './text-pair.js'
import { attentionMask, PROBE_BATCHES, padded, roundUp, tokenLengths } from './token-batch.js'

/** A tokenized row. */
export interface Seq2SeqExample {
  /** What the encoder reads. */
  readonly source: Int32Array
  /** What the decoder writes: the token that ends a text is the last one. */
  readonly target: Int32Array
}

export const seq2seq: Task<TextPair, Seq2SeqExample> = {
  name: 'seq2seq',
  peftType: 'SEQ_2_SEQ_LM',
  reading: 'generate',

  check(model) {
    const graph = readGraph(model.onnx.proto)
    if (inputFamily(graph) === 'joined') return void joinedInputs(graph)
    const { encoder, decoder } = model.graphs
    const [what, hint] =
      encoder !== undefined && decoder === undefined
        ? ['an encoder without its decoder', 'Put decoder_model_merged.onnx or decoder_model.onnx beside it']
        : inputFamily(graph) === 'encoder-decoder'
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

  encode({ text, target, where }, context) {
    const { model, maxLength } = context
    const tokenizer = requireTokenizer(model)
    const { ids, isTruncated } = tokenizer.encodeTexts(text, undefined, maxLength)
    const { ids: written, isCut } = encodeTarget(target, tokenizer, context, where)
    for (const own of [ids, written]) checkVocabulary(own, { tokenizer, vocabularySize: model.vocabularySize })
    const example = { source: Int32Array.from(ids), target: Int32Array.from(written) }
    return { examples: [example], isTruncated: isTruncated || isCut }
  },

  tokens: ({ source, target }) => ({
    ids: Int32Array.from([...source, ...target]),
    counts: (i) => i >= source.length,
  }),

  open: (model) => new Seq2Seq(model),
}

/** The tokens of a target: what ends a text stands at their end once, and what the decoder begins with is not one of them. */
function encodeTarget(
  text: string,
  tokenizer: Tokenizer,
  { model, maxLength, isLimited }: EncodeContext,
  where: string,
): { ids: number[]; isCut: boolean } {
  const [eosTokenId] = model.eosTokenIds
  if (eosTokenId === undefined) {
    throw new FormatError({
      where: tokenizer.name,
      what: 'no file names the token that ends a text',
      hint: 'Add eos_token to tokenizer_config.json, or eos_token_id to config.json',
    })
  }
  const start = startToken(model)
  const encode = (length: number) => {
    const { ids } = tokenizer.encodeTexts(text, undefined, length)
    const own = ids[0] === start ? ids.slice(1) : ids
    return own.at(-1) === eosTokenId ? own : [...own, eosTokenId]
  }
  const ids = encode(Number.POSITIVE_INFINITY)
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
    hint: `Shorten it, or cut all texts that are too long: maxLength ${limit} (--max-length ${limit})`,
  })
}

/** Most tokens that the decoder can write. */
function positionsOf({ config, contextLength = Number.POSITIVE_INFINITY }: Model): number {
  const { max_target_positions: positions } = config
  return typeof positions === 'number' ? positions : contextLength
}

/** Tokens of a target where shapes are measured. */
const PROBED_WIDTHS = [4, 9] as const

/** The decoder's own tokens. */
const DECODER_IDS = `${OF_DECODER}input_ids`

class Seq2Seq implements OpenTask<Seq2SeqExample> {
  readonly probe: OpenTask['probe']
  readonly #inputs: JoinedInputs
  readonly #start: number
  readonly #model: Model

  constructor(model: Model) {
    this.#model = model
    this.#inputs = joinedInputs(readGraph(model.onnx.proto))
    this.#start = startToken(model)
    const [first, second] = PROBE_BATCHES.map(({ batch, sequence }, i) => {
      const examples = Array(batch).fill({ source: new Int32Array(sequence), target: new Int32Array(PROBED_WIDTHS[i]) })
      return { ...this.#feeds(examples, sequence, PROBED_WIDTHS[i]), ...probeTargets(PROBED_TARGETS[i]) }
    })
    this.probe = { feeds: [first, second], lengths: [...tokenLengths(), ...writtenLengths(), targetsLength()] }
  }

  forward(graph: ObjectiveGraph): Value {
    const { choice, loss } = nextTokenLoss(graph)
    graph.check((shapeOf) => checkWidth(this.#model, shapeOf(choice.chosen)?.dims[1]))
    const best = graph.g.op('ArgMax', [choice.chosen], { axis: 1, keepdims: 0 })
    graph.predict(graph.g.cast(best, DataType.FLOAT))
    return loss
  }

  cost({ source, target }: Seq2SeqExample): number {
    return source.length + target.length
  }

  /** Both sides have a length of their own: `length` is that of both together. */
  collate(examples: readonly Seq2SeqExample[]): Feeds {
    const longest = (lengths: readonly number[], limit: number) => Math.min(roundUp(Math.max(...lengths)), limit)
    const { contextLength = Number.POSITIVE_INFINITY } = this.#model
    const sources = examples.map(({ source }) => source.length)
    const targets = examples.map(({ target }) => target.length)
    const width = longest(targets, positionsOf(this.#model))
    const rows = targets.flatMap((length, row) => Array.from({ length }, (_, i) => row * width + i))
    return {
      ...this.#feeds(examples, longest(sources, contextLength), width),
      ...rowFeeds(
        rows,
        examples.flatMap(({ target }) => [...target]),
      ),
    }
  }

  normalizer(examples: readonly Seq2SeqExample[]): number {
    return examples.reduce((sum, { target }) => sum + target.length, 0)
  }

  content({ source, target }: Seq2SeqExample): Int32Array[] {
    return [source, target]
  }

  /** How many tokens of each target were the most probable ones. */
  predict(outputs: Readonly<Record<string, RuntimeTensor>>, examples: readonly Seq2SeqExample[]): number[] {
    const found = Object.values(outputs).find(({ dims }) => dims.length === 1)?.data as Float32Array
    let at = 0
    return examples.map(({ target }) => target.reduce((sum, token) => sum + (found[at++] === token ? 1 : 0), 0))
  }

  metrics({
    loss,
    examples,
    predictions,
  }: {
    loss: number
    examples: readonly Seq2SeqExample[]
    predictions: readonly unknown[]
  }): Record<string, number> {
    const correct = (predictions as number[]).reduce((sum, count) => sum + count, 0)
    return { perplexity: Math.exp(loss), accuracy: correct / this.normalizer(examples) }
  }

  #feeds(examples: readonly Seq2SeqExample[], sequence: number, width: number): Feeds {
    const { padTokenId } = this.#model
    const sources = examples.map(({ source }) => source)
    // The decoder reads what it has written so far: the target, moved by one.
    const read = examples.map(({ target }) => Int32Array.from([this.#start, ...target.subarray(0, -1)]))
    const tokens = (lists: readonly Int32Array[], length: number) => ({
      batch: examples.length,
      sequence: length,
      inputIds: padded(lists, length, padTokenId),
      attentionMask: attentionMask(lists, length),
    })
    return this.#inputs.feeds(tokens(sources, sequence), tokens(read, width))
  }
}

/** The lengths of what the decoder reads. */
function writtenLengths(): Length[] {
  const [first, second] = PROBED_WIDTHS
  const source = { input: DECODER_IDS, axis: 1 }
  const [one, other] = PROBE_BATCHES
  const dims = (feeds: Feeds) => feeds[DECODER_IDS].dims
  return [
    { name: 'written', probed: [first, second], of: (feeds) => dims(feeds)[1], source },
    {
      name: 'written rows',
      probed: [one.batch * first, other.batch * second],
      of: (feeds) => dims(feeds)[0] * dims(feeds)[1],
    },
  ]
}
