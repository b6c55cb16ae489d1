// Texts in, labels out: by the head that an adapter brings, or by the model's own logits.

import { MismatchError, NumericError, UnsupportedError } from '../base/errors.js'
import { COUNT, checkOptions, NAME, type OptionTable, orNull } from '../base/options.js'
import { logitsName } from '../graph/match/linears.js'
import type { Model } from '../graph/model-folder.js'
import type { Graph } from '../graph/view/graph.js'
import { readGraph } from '../graph/view/read-graph.js'
import type { Remote } from '../runtime/rpc.js'
import type { Feeds, RuntimeTensor } from '../runtime/runtime.js'
import { namedLabels } from '../tasks/heads.js'
import { type Mix, mixesOf } from './adapter-choice.js'
import type { InferEngine } from './engine.js'
import { type AdapterHead, floatsOf, headLogits } from './heads.js'
import type { Classification, ClassifyOptions, TextOrPair } from './session.js'
import { BATCH_KINDS, batchesOf, encodeTexts, listOfTexts, TEXT_OR_PAIR } from './text-batches.js'

/** What labels need of a session. */
export interface ClassifierSession {
  readonly model: Model
  readonly engine: Remote<InferEngine>
  /** Throws MismatchError unless runs can choose these adapters. */
  checkMixes(mixes: readonly Mix[]): void
  /** The head that an adapter brings. */
  headOf(name: string): AdapterHead | undefined
}

const OPTIONS: OptionTable<ClassifyOptions> = {
  adapter: orNull(NAME),
  topK: COUNT,
  ...BATCH_KINDS,
}

/** See AdapterSession.classify. */
export async function classify(
  session: ClassifierSession,
  texts: TextOrPair | readonly TextOrPair[],
  options: ClassifyOptions = {},
): Promise<Classification | Classification[]> {
  checkOptions(options, { of: 'classify', table: OPTIONS })
  const list = listOfTexts(texts, TEXT_OR_PAIR)
  const { adapter, topK = 1 } = options
  session.checkMixes(mixesOf(adapter, undefined))
  const source = logitsOf(session, adapter ?? undefined)
  const encoded = encodeTexts(session.model, list, options.maxLength)
  const results: Classification[] = Array(list.length)
  for (const batch of batchesOf(session.model, source.graph, encoded, options)) {
    const logits = await source.run(batch.feeds)
    const [, count] = logits.dims
    const labels = labelsFor(count, source.labels)
    const values = floatsOf(logits)
    batch.texts.forEach((text, row) => {
      const own = values.slice(row * count, (row + 1) * count)
      results[text] = {
        ...ranked(own, labels, topK, source.problemType),
        logits: own,
        isTruncated: encoded[text].isTruncated,
      }
    })
  }
  return Array.isArray(texts) ? results : results[0]
}

/** Where logits (batch, labels) come from. */
interface LogitsSource {
  readonly graph: Graph
  /** In the order of the logits; undefined where no file tells. */
  readonly labels: readonly string[] | undefined
  /** What the logits are numbers of, in transformers' words; undefined where no file tells. */
  readonly problemType: unknown
  run(feeds: Feeds): Promise<RuntimeTensor>
}

/** Throws UnsupportedError or MismatchError when there are none. */
function logitsOf(session: ClassifierSession, adapter: string | undefined): LogitsSource {
  const { model } = session
  const graph = readGraph(model.onnx.proto)
  const head = adapter === undefined ? undefined : session.headOf(adapter)
  const wanted = head?.input.value ?? logitsName(graph)
  if (head === undefined) checkClassifier(model, graph, adapter)
  const names = namedLabels(model.config)
  // A head of another size has other labels than the model's.
  const isOwn = names.length > 0 && (head === undefined || head.count === names.length)
  return {
    graph,
    labels: head?.labels ?? (isOwn ? names : undefined),
    problemType: head === undefined ? model.config.problem_type : head.problemType,
    async run(feeds) {
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

/** The likeliest labels of one text. */
function ranked(logits: Float32Array, labels: readonly string[], topK: number, problemType: unknown) {
  if (!logits.every(Number.isFinite)) {
    throw new NumericError({ where: 'logits', what: 'they are not finite', hint: 'Run the model in f32' })
  }
  const scores = scoresOf(logits, problemType)
  const order = [...scores.keys()].sort((a, b) => scores[b] - scores[a]).slice(0, topK)
  const best = order.map((i) => ({ label: labels[i], score: scores[i] }))
  return { ...best[0], labels: best }
}

/** Quantities, and a single logit, are given as they are; of labels that do not exclude one another each has its own probability. */
function scoresOf(logits: Float32Array, problemType: unknown): number[] {
  if (problemType === 'multi_label_classification') return Array.from(logits, (value) => 1 / (1 + Math.exp(-value)))
  return problemType === 'regression' || logits.length === 1 ? [...logits] : softmax(logits)
}

function softmax(logits: Float32Array): number[] {
  const most = Math.max(...logits)
  const powers = Array.from(logits, (value) => Math.exp(value - most))
  const sum = powers.reduce((total, power) => total + power, 0)
  return powers.map((power) => power / sum)
}
