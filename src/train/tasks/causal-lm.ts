// Causal language modeling: predict each token from the tokens before it. The targets are all tokens of a text, the
// completion of a prompt, or the assistant's turns of a chat. The loss is the cross-entropy in nats per target.

import { ConfigError, DataError, FormatError, UnsupportedError } from '../../core/base/errors.js'
import { isObject, objectOf } from '../../core/base/options.js'
import { inputFamily } from '../../model/inputs/family.js'
import { tokenBatch } from '../../model/inputs/token-batch.js'
import { tokenInputs } from '../../model/inputs/tokens.js'
import { checkCausal } from '../../model/match/continues.js'
import { type Model, requireTokenizer, type TextModel } from '../../model/model-folder.js'
import { type Chat, chatOf } from '../../model/text/chat.js'
import { encodeChat } from '../../model/text/chat-encode.js'
import { type PackedExample, PackedExamples } from '../../model/text/packed-examples.js'
import { countTargets, type Example, encodeText, fieldsRead, IGNORED } from '../../model/text/records.js'
import type { ChatTemplate } from '../../model/text/template.js'
import { checkVocabulary } from '../../model/text/tokenizer.js'
import type { Feeds } from '../../onnx/runtime/runtime.js'
import type { Value } from '../../onnx/view/builder.js'
import { readGraph } from '../../onnx/view/graph.js'
import type { ObjectiveGraph } from '../graph/objective-graph.js'
import { RECORDS, separateRecords } from '../graph/separate-records.js'
import {
  hasSoft,
  probeSoft,
  type SoftExample,
  softFeeds,
  softLength,
  softLoss,
  softTargetsOf,
} from '../rows/soft-targets.js'
import { NextTokens, PROBED_TARGETS, probeTargets, rowFeeds, targetsLength } from './next-tokens.js'
import type { PicturedExample, PictureEncoder } from './pictures/encoder.js'
import { type PicturedRecord, parsePictured } from './pictures/row-images.js'
import type { EncodeContext, Encoded, Examples, OpenTask, Question, Task, TaskUse } from './task.js'
import { predictedRows, tokenProbe } from './token-probe.js'

/** How likely another model found the tokens of the last answer: `logprobs` of a choice in OpenAI's API. */
const LOGPROBS = 'logprobs'

type LmRecord = PicturedRecord & { readonly logprobs?: object }
type LmExample = PicturedExample & SoftExample

export const causalLm: Task<LmRecord, LmExample> = {
  name: 'causal-lm',
  peftType: 'CAUSAL_LM',
  learns: 'to continue texts, and to answer',
  records: [
    { text: 'The sea was calm.' },
    { prompt: 'The sea', completion: ' was calm.' },
    { question: 'How was the sea?', answer: 'Calm.' },
    {
      messages: [
        { role: 'user', content: 'How was the sea?' },
        { role: 'assistant', content: 'Calm.' },
      ],
    },
    {
      messages: [
        { role: 'user', content: [{ type: 'image' }, { type: 'text', text: 'How is the sea?' }] },
        { role: 'assistant', content: 'Calm.' },
      ],
      images: ['sea.jpg'],
    },
  ],
  use: { command: ['generate', '--prompt', 'The'], pipeline: 'text-generation', autoClass: 'AutoModelForCausalLM' },
  page: {
    lesson: 'The adapter will learn to write like this text.',
    unit: 'tokens',
    settings: { maxSteps: 60, learningRate: 0.005, batchSize: 4 },
  },
  lowerIsBetter: ['perplexity'],

  check(model) {
    const graph = readGraph(model.onnx)
    if (inputFamily(graph)?.encoderGraph !== undefined) {
      const names = graph.inputs.map(({ name }) => name)
      throw new UnsupportedError({
        where: 'ONNX model',
        what: 'it is an encoder-decoder, which writes a text for another one and continues none',
        expected: 'a causal language model',
        got: `inputs ${names.slice(0, 4).join(', ')}, …`,
      })
    }
    checkCausal(model, graph)
    tokenInputs(graph)
  },

  reads: (row) => [...fieldsRead(row), ...(Array.isArray(row.messages) ? [LOGPROBS] : [])],

  parse(row, where) {
    const record = parsePictured(row, where)
    const logprobs = objectOf(row)[LOGPROBS]
    return record.kind === 'chat' && isObject(logprobs) ? { ...record, logprobs } : record
  },

  async load(record, { model, pictures }) {
    if (record.kind !== 'chat' || record.images === undefined) return record
    if (pictures === undefined) {
      throw new UnsupportedError({
        where: `${record.where}, images`,
        what: 'pictures beside texts are not read here',
        expected: 'training or evaluation of a model with embed_tokens.onnx and vision_encoder.onnx',
        got: `model_type ${JSON.stringify(model.config.model_type)}`,
      })
    }
    await pictures.read(record.chat, record.images, record.where)
    return record
  },

  encode(record, context) {
    const encoded = softened(record, encode(record, context), context.model)
    const { vocabularySize } = context.model
    const tokenizer = requireTokenizer(context.model)
    for (const { inputIds, pictures } of encoded.examples) {
      const ids = pictures === undefined ? inputIds : inputIds.filter((id) => id !== pictures.encoder.token)
      checkVocabulary(ids, { tokenizer, vocabularySize })
    }
    return { ...encoded, examples: encoded.examples.filter(({ labels }) => countTargets(labels) > 0) }
  },

  question: questionOf,

  tokens: ({ inputIds, labels }) => ({ ids: inputIds, counts: (i) => i > 0 && labels[i] !== IGNORED }),

  writing: {
    prompt(text, { model, chatTemplate, chatTemplateArgs: args }, isChat) {
      const tokenizer = requireTokenizer(model)
      const template = isChat ? chatTemplate() : undefined
      if (template === undefined) return [...tokenizer.encode(text)]
      const messages = [{ role: 'user', content: text }]
      const rendered = template.render(messages, { args, addGenerationPrompt: true }, 'sample')
      return [...tokenizer.encode(rendered.text, { specialTokens: false })]
    },
    next(ids) {
      const inputIds = Int32Array.from([...ids, 0])
      const labels = inputIds.slice().fill(IGNORED, 0, ids.length)
      return { inputIds, labels }
    },
    chosen: (outputs) => predictedRows(outputs).map(([token]) => token),
  },

  pack(examples, length) {
    const kind = encoderOf(examples) ? 'pictures' : hasSoft(examples) ? LOGPROBS : undefined
    if (kind === undefined) return new PackedExamples(examples, length)
    throw new ConfigError({ where: 'packing', what: `records with ${kind} have rows of their own` })
  },

  open: (model, examples) => new CausalLm(model, examples),
}

function encoderOf(examples: Iterable<PicturedExample>): PictureEncoder | undefined {
  for (const { pictures } of examples) if (pictures !== undefined) return pictures.encoder
  return undefined
}

function softened({ logprobs }: LmRecord, encoded: Encoded<PicturedExample>, model: TextModel): Encoded<LmExample> {
  const { examples, notes = [] } = encoded
  const last = examples.at(-1)
  if (logprobs === undefined || last === undefined) return encoded
  const soft = softTargetsOf(logprobs, last, model)
  const note = `have \`${LOGPROBS}\` of other tokens than the model’s, so that only their texts are learned`
  return soft === undefined
    ? { ...encoded, notes: [...notes, note] }
    : { ...encoded, examples: [...examples.slice(0, -1), { ...last, soft }] }
}

function encode(record: PicturedRecord, context: EncodeContext): Encoded<PicturedExample> {
  switch (record.kind) {
    case 'text':
      return record.text === '' ? { examples: [], isTruncated: false } : encodePair('', record.text, context)
    case 'pair':
      return encodePair(record.prompt, record.completion, context)
    case 'answer': {
      const { question, answer, system, where } = record
      const template = context.chatTemplate()
      if (template !== undefined) return encodeTurns(chatOf(question, answer, system), template, context, where)
      return encodePair(plainQuestion(question, system), answer, context)
    }
    case 'chat': {
      const template = context.chatTemplate()
      if (template !== undefined) {
        const chat = context.tools?.takeFrom(record.chat, record.where) ?? record.chat
        return encodeTurns(chat, template, context, record.where)
      }
      throw noTemplateForChats(context.model.directory.name)
    }
  }
}

export function noTemplateForChats(where: string): FormatError {
  return new FormatError({
    where,
    what: 'the data contains chats, but the model has no chat template',
    hint: 'Give a template with `chatTemplate`, or use records with "prompt" and "completion"',
  })
}

function questionOf(record: PicturedRecord, context: EncodeContext): Question | undefined {
  switch (record.kind) {
    case 'text':
      return undefined
    case 'pair':
      return { prompt: record.prompt, answer: record.completion }
    case 'answer': {
      const { question, answer, system } = record
      const { messages } = chatOf(question, answer, system)
      const hasTemplate = context.chatTemplate() !== undefined
      return { prompt: hasTemplate ? messages.slice(0, -1) : plainQuestion(question, system), answer }
    }
    case 'chat': {
      const { messages } = record.chat
      const { role, content = '' } = messages[messages.length - 1]
      if (role !== 'assistant' || typeof content !== 'string') return undefined
      return { prompt: messages.slice(0, -1), answer: content, images: record.images }
    }
  }
}

function plainQuestion(question: string, system: string | undefined): string {
  return `${system === undefined ? '' : `${system}\n\n`}${question}\n`
}

function encodePair(prompt: string, completion: string, { model, maxLength }: EncodeContext): Encoded<Example> {
  const { inputIds, labels } = encodeText(prompt, completion, requireTokenizer(model), eosOf(model), maxLength)
  const example = { inputIds: inputIds.slice(0, maxLength), labels: labels.slice(0, maxLength) }
  return { examples: [example], isTruncated: inputIds.length > maxLength }
}

export function eosOf({ eosTokenIds: [eosTokenId], directory }: Pick<Model, 'eosTokenIds' | 'directory'>): number {
  if (eosTokenId !== undefined) return eosTokenId
  throw new FormatError({
    where: directory.name,
    what: 'no file names the token that ends a text',
    hint: 'Add eos_token to tokenizer_config.json, or eos_token_id to config.json',
  })
}

function encodeTurns(
  chat: Chat,
  template: ChatTemplate,
  context: EncodeContext,
  where: string,
): Encoded<PicturedExample> {
  const { model, maxLength, chatTemplateArgs: args, pictures } = context
  const encoded = encodeChat(chat, { template, tokenizer: requireTokenizer(model), maxLength, args }, where)
  const { isShortened, lostAnswers, notes } = encoded
  const examples = encoded.examples.map((example, i) => pictures?.pictured(example, encoded.chats[i], where) ?? example)
  return { examples, isTruncated: isShortened || lostAnswers > 0, notes }
}

/** PEFT's class for this task loads a language model without its vision encoder. */
const OF_PICTURES: TaskUse = {
  pipeline: 'image-text-to-text',
  autoClass: 'AutoModelForImageTextToText',
  onlyMerged: true,
}

export class CausalLm extends NextTokens<Example> implements OpenTask<LmExample> {
  readonly plainUse: TaskUse | undefined
  readonly #isPacked: boolean
  readonly #isSoft: boolean
  readonly #pictures: PictureEncoder | undefined
  readonly #inputs: ReturnType<typeof tokenInputs>
  readonly #probe: OpenTask['probe']

  constructor(model: Model, examples: Examples<LmExample>) {
    super(model, 1)
    this.#isPacked = examples instanceof PackedExamples
    this.#isSoft = hasSoft(examples)
    const readsPictures = model.graphs.vision_encoder !== undefined
    this.#pictures = this.#isPacked || !readsPictures ? undefined : encoderOf(examples)
    this.plainUse = readsPictures ? OF_PICTURES : undefined
    const graph = readGraph(model.onnx)
    this.#inputs = tokenInputs(graph)
    const { batches, lengths } = tokenProbe(graph)
    const [first, second] = batches.map(({ batch, sequence }, i) => {
      const inputIds = new Int32Array(sequence)
      const examples = Array<Example>(batch).fill({ inputIds, labels: inputIds })
      const feeds = { ...this.#feeds(examples, sequence), ...this.#pictures?.probe[i]() }
      return { ...feeds, ...probeTargets(PROBED_TARGETS[i]), ...(this.#isSoft && probeSoft(i)) }
    })
    const others = [...(this.#pictures ? [this.#pictures.length] : []), ...(this.#isSoft ? [softLength()] : [])]
    this.#probe = { feeds: [first, second], lengths: [...lengths, targetsLength(), ...others] }
  }

  get probe(): OpenTask['probe'] {
    return this.#probe
  }

  override forward(graph: ObjectiveGraph): Value {
    if (this.#isPacked) separateRecords(graph, this.#inputs.roles)
    this.#pictures?.addTo(graph)
    return super.forward(graph)
  }

  protected override besides(graph: ObjectiveGraph, logits: Value, loss: Value): Value {
    return this.#isSoft ? softLoss(graph, logits, loss) : loss
  }

  cost({ inputIds }: Example): number {
    return inputIds.length
  }

  async prepare(examples: readonly PicturedExample[]): Promise<void> {
    await this.#pictures?.prepare(examples)
  }

  collate(examples: readonly LmExample[], length: number): Feeds {
    const feeds = { ...this.#feeds(examples, length), ...(this.#isSoft && softFeeds(examples)) }
    if (this.#pictures !== undefined) return this.#pictures.feeds(examples, length, feeds)
    if (encoderOf(examples) === undefined) return feeds
    throw new DataError({ where: 'evaluation data', what: 'it has pictures, and the training data has none' })
  }

  #feeds(examples: readonly Example[], length: number): Feeds {
    const ids = examples.map(({ inputIds }) => inputIds)
    const labels = examples.map((example) => example.labels)
    const tokens = tokenBatch(ids, length, this.model.padTokenId)
    const packed = this.#isPacked ? recordsOf(examples, length) : undefined
    return {
      ...this.#inputs.feeds({ ...tokens, positionIds: packed?.positionIds }),
      ...this.#inputs.emptyCache(ids.length),
      ...(packed && { [RECORDS]: { type: 'int32', data: packed.records, dims: [ids.length, length] } as const }),
      ...targetFeeds(labels, length),
    }
  }

  protected targetsOf({ labels }: Example): Int32Array {
    return labels.subarray(1).filter((label) => label !== IGNORED)
  }
}

/** Numbers each token's record from 1 and its position within it. Padding is record 0. */
function recordsOf(examples: readonly (Example & Partial<PackedExample>)[], length: number) {
  const records = new Int32Array(examples.length * length)
  const positionIds = new Int32Array(examples.length * length)
  examples.forEach(({ inputIds, starts = [0] }, row) => {
    starts.forEach((start, i) => {
      for (let at = start; at < (starts[i + 1] ?? inputIds.length); at++) {
        records[row * length + at] = i + 1
        positionIds[row * length + at] = at - start
      }
    })
  })
  return { records, positionIds }
}

/** Feeds the rows that have a target: position i predicts label i + 1 of its row, which has `length` positions. */
function targetFeeds(labels: readonly Int32Array[], length: number): Feeds {
  const rows: number[] = []
  const targets: number[] = []
  for (const [row, list] of labels.entries()) {
    for (let i = 1; i < list.length; i++) {
      if (list[i] === IGNORED) continue
      targets.push(list[i])
      rows.push(row * length + i - 1)
    }
  }
  if (rows.length === 0) throw new DataError({ where: 'batch', what: 'no position has a target' })
  return rowFeeds(rows, targets)
}
