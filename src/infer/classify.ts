// Texts in, labels out: by the head that an adapter brings, or by the model's own logits.

import { MismatchError, NumericError, UnsupportedError } from '../base/errors.js'
import {
  anyOf,
  COUNT,
  checkArgument,
  checkOptions,
  isObject,
  kind,
  NAME,
  type OptionTable,
  orNull,
  SIGNAL,
  STRING,
} from '../base/options.js'
import { encoderInputs } from '../graph/inputs/encoder.js'
import { logitsName } from '../graph/match/linears.js'
import { type Model, requireTokenizer } from '../graph/model-folder.js'
import type { Graph } from '../graph/view/graph.js'
import { readGraph } from '../graph/view/read-graph.js'
import type { Remote } from '../runtime/rpc.js'
import type { RuntimeTensor } from '../runtime/runtime.js'
import { attentionMask, padded } from '../tasks/token-batch.js'
import { checkVocabulary } from '../text/records.js'
import { type Mix, mixesOf } from './adapter-choice.js'
import type { InferEngine } from './engine.js'
import { type AdapterHead, floatsOf, headLogits } from './heads.js'
import type { Classification, ClassifyOptions, TextOrPair } from './session.js'

/** What labels need of a session. */
export interface ClassifierSession {
  readonly model: Model
  readonly engine: Remote<InferEngine>
  /** Throws MismatchError unless runs can choose these adapters. */
  checkMixes(mixes: readonly Mix[]): void
  /** The head that an adapter brings. */
  headOf(name: string): AdapterHead | undefined
}

/** Texts in a run where nothing else is asked for. */
const BATCH_SIZE = 8

const OPTIONS: OptionTable<ClassifyOptions> = {
  adapter: orNull(NAME),
  topK: COUNT,
  maxLength: COUNT,
  batchSize: COUNT,
  signal: SIGNAL,
}

const PAIR = kind('an object with text and textPair', (value) => {
  if (!isObject(value)) return false
  const { text, textPair, ...others } = value
  const isPair = textPair === undefined || typeof textPair === 'string'
  return typeof text === 'string' && isPair && Object.keys(others).length === 0
})

const TEXT = anyOf(STRING, PAIR)

/** See AdapterSession.classify. */
export async function classify(
  session: ClassifierSession,
  texts: TextOrPair | readonly TextOrPair[],
  options: ClassifyOptions = {},
): Promise<Classification | Classification[]> {
  checkOptions(options, { of: 'classify', table: OPTIONS })
  const list = Array.isArray(texts) ? texts : [texts]
  list.forEach((text, i) => void checkArgument(text, TEXT, Array.isArray(texts) ? `texts[${i}]` : 'texts'))
  const { adapter, topK = 1, signal, batchSize = BATCH_SIZE } = options
  session.checkMixes(mixesOf(adapter, undefined))
  const source = logitsOf(session, adapter ?? undefined)
  const encoded = list.map((text) => encode(session.model, text, options.maxLength))
  const results: Classification[] = Array(list.length)
  // Texts of like length run together: what fills up is computed too.
  const order = [...encoded.keys()].sort((a, b) => encoded[a].ids.length - encoded[b].ids.length)
  for (let from = 0; from < order.length; from += batchSize) {
    signal?.throwIfAborted()
    const batch = order.slice(from, from + batchSize)
    const logits = await source.run(batch.map((i) => encoded[i]))
    const [, count] = logits.dims
    const labels = labelsFor(count, source.labels)
    const values = floatsOf(logits)
    batch.forEach((i, row) => {
      const own = values.slice(row * count, (row + 1) * count)
      results[i] = { ...ranked(own, labels, topK), logits: own, isTruncated: encoded[i].isTruncated }
    })
  }
  return Array.isArray(texts) ? results : results[0]
}

interface EncodedText {
  readonly ids: readonly number[]
  readonly typeIds: readonly number[]
  readonly isTruncated: boolean
}

function encode(model: Model, input: TextOrPair, maxLength = Number.POSITIVE_INFINITY): EncodedText {
  const { text, textPair } = typeof input === 'string' ? { text: input, textPair: undefined } : input
  const { vocabularySize, contextLength = Number.POSITIVE_INFINITY } = model
  const tokenizer = requireTokenizer(model)
  const encoded = tokenizer.encodeTexts(text, textPair, Math.min(maxLength, contextLength))
  checkVocabulary(encoded.ids, { tokenizer, vocabularySize })
  return encoded
}

/** Where logits (batch, labels) come from. */
interface LogitsSource {
  /** In the order of the logits; undefined where no file tells. */
  readonly labels: readonly string[] | undefined
  run(batch: readonly EncodedText[]): Promise<RuntimeTensor>
}

/** Throws UnsupportedError or MismatchError when there are none. */
function logitsOf(session: ClassifierSession, adapter: string | undefined): LogitsSource {
  const { model } = session
  const graph = readGraph(model.onnx.proto)
  const head = adapter === undefined ? undefined : session.headOf(adapter)
  const wanted = head?.input.value ?? logitsName(graph)
  if (head === undefined) checkClassifier(model, graph, adapter)
  const inputs = encoderInputs(graph)
  const { id2label } = model.config
  const named = Object.entries(isObject(id2label) ? id2label : {}).sort(([a], [b]) => Number(a) - Number(b))
  const names = named.length === 0 ? undefined : named.map(([, label]) => String(label))
  // A head of another size has other labels than the model's.
  const isOwn = names !== undefined && (head === undefined || head.count === names.length)
  return {
    labels: head?.labels ?? (isOwn ? names : undefined),
    async run(batch) {
      const ids = batch.map((text) => text.ids)
      const sequence = Math.max(...ids.map(({ length }) => length))
      const feeds = inputs.feeds({
        batch: batch.length,
        sequence,
        inputIds: padded(ids, sequence, model.padTokenId),
        attentionMask: attentionMask(ids, sequence),
        tokenTypeIds: padded(
          batch.map(({ typeIds }) => typeIds),
          sequence,
          0,
        ),
      })
      const { [wanted]: output } = await session.engine.run(feeds, mixesOf(adapter, undefined), [wanted])
      const logits = head === undefined ? output : headLogits(head, output)
      if (logits.dims.length === 2) return logits
      throw noClassifier(graph, adapter, `${wanted} of ${logits.dims.length} axes`)
    },
  }
}

/** Throws UnsupportedError for a graph whose logits are no labels of whole texts, as far as its declarations tell. */
function checkClassifier({ config }: Model, graph: Graph, adapter: string | undefined): void {
  const logits = graph.outputs.find(({ name }) => name === logitsName(graph))
  const type = logits?.type?.value
  const dims = type?.case === 'tensorType' ? type.value.shape?.dim : undefined
  const got = `${logits?.name ?? 'no outputs'}${dims === undefined ? '' : ` of ${dims.length} axes`}`
  const isHidden = /hidden_state|pooler|embedding/.test(logits?.name ?? '')
  const architectures = [config.architectures].flat().filter((name) => typeof name === 'string')
  const isOther = architectures.some((name) => /For(CausalLM|MaskedLM|ConditionalGeneration|TokenClass)/.test(name))
  if (logits === undefined || isHidden || isOther || (dims !== undefined && dims.length !== 2)) {
    throw noClassifier(graph, adapter, isOther ? architectures.join(', ') : got)
  }
}

function noClassifier(graph: Graph, adapter: string | undefined, got: string): UnsupportedError {
  const isGenerative = graph.inputs.some(({ name }) => /^past/.test(name))
  const whose = adapter === undefined ? 'the model' : `neither the model nor the adapter ${JSON.stringify(adapter)}`
  return new UnsupportedError({
    where: 'ONNX model',
    what: adapter === undefined ? `${whose} has no head that gives labels to texts` : `${whose} has a head for labels`,
    expected: 'an output logits (batch, labels), or an adapter with modules_to_save',
    got,
    hint: isGenerative
      ? 'This model continues texts: call generate'
      : 'Train an adapter with the task text-classification, and name it in `adapter`',
  })
}

/** @throws MismatchError when there are not as many names as logits */
function labelsFor(count: number, names: readonly string[] | undefined): readonly string[] {
  if (names === undefined) return Array.from({ length: count }, (_, i) => `LABEL_${i}`)
  if (names.length === count) return names
  throw new MismatchError({
    where: 'id2label',
    what: 'the model does not have as many labels as logits',
    expected: String(count),
    got: names.join(', '),
  })
}

/** The likeliest labels of one text. A single logit is a number by itself: it is given as it is. */
function ranked(logits: Float32Array, labels: readonly string[], topK: number) {
  if (!logits.every(Number.isFinite)) {
    throw new NumericError({ where: 'logits', what: 'they are not finite', hint: 'Run the model in f32' })
  }
  const scores = logits.length === 1 ? [logits[0]] : softmax(logits)
  const order = [...scores.keys()].sort((a, b) => scores[b] - scores[a]).slice(0, topK)
  const best = order.map((i) => ({ label: labels[i], score: scores[i] }))
  return { ...best[0], labels: best }
}

function softmax(logits: Float32Array): number[] {
  const most = Math.max(...logits)
  const powers = Array.from(logits, (value) => Math.exp(value - most))
  const sum = powers.reduce((total, power) => total + power, 0)
  return powers.map((power) => power / sum)
}
