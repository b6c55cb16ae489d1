// Finds the logits of labels: those of the head that an adapter brings, or of the model's own head.

import { MismatchError, NumericError, UnsupportedError } from '../../core/base/errors.js'
import { namedLabels } from '../../model/heads/heads.js'
import { logitsDims, logitsName } from '../../model/match/linears.js'
import type { Model } from '../../model/model-folder.js'
import type { Feeds, RuntimeTensor } from '../../onnx/runtime/runtime.js'
import { type Graph, readGraph } from '../../onnx/view/graph.js'
import { mixesOf } from '../adapters/choice.js'
import { headLogits } from '../adapters/heads.js'
import type { WholeSession } from '../graphs.js'

export type Labelled = 'texts' | 'words'

/** The shapes of logits for texts and for words, and the method that reads models of the other kind. */
const KINDS = {
  texts: { axes: 2, shape: '(batch, labels)', task: 'text-classification', otherMethod: 'tag' },
  words: { axes: 3, shape: '(batch, sequence, labels)', task: 'token-classification', otherMethod: 'classify' },
} as const

/**
 * Returns the source of logits. `labels` are in the order of the logits. `labels` and `problemType` are undefined if no
 * file says them.
 */
export function logitsOf(session: WholeSession, adapter: string | undefined, of: Labelled) {
  const { model } = session
  const graph = readGraph(model.onnx)
  const head = adapter === undefined ? undefined : session.headOf(adapter)
  const wanted = head?.input.value ?? logitsName(graph)
  if (head === undefined) checkClassifier(model, graph, adapter, of)
  else if ((head.input.rows === 'all') !== (of === 'words')) {
    throw new UnsupportedError({
      where: `adapter ${JSON.stringify(adapter)}`,
      what: `its head gives labels to ${of === 'words' ? 'whole texts' : 'words'}`,
      hint: `Call ${KINDS[of].otherMethod}`,
    })
  }
  const names = namedLabels(model.config)
  // If the adapter's head has another size than the model's, the model's labels do not fit it.
  const isOwn = names.length > 0 && (head === undefined || head.count === names.length)
  return {
    graph,
    labels: head?.labels ?? (isOwn ? names : undefined),
    problemType: head === undefined ? model.config.problem_type : head.problemType,
    async run(feeds: Feeds): Promise<RuntimeTensor> {
      const { [wanted]: output } = await session.runGraph(undefined, feeds, mixesOf(adapter, undefined), [wanted])
      const logits = head === undefined ? output : headLogits(head, output, feeds)
      if (logits.dims.length === KINDS[of].axes) return logits
      throw noClassifier(graph, adapter, of, `${wanted} of ${logits.dims.length} axes`)
    },
  }
}

function checkClassifier({ config }: Model, graph: Graph, adapter: string | undefined, of: Labelled): void {
  const [logits, dims] = [logitsName(graph), logitsDims(graph)]
  const got = `${logits || 'no outputs'}${dims === undefined ? '' : ` of ${dims.length} axes`}`
  const isHidden = /hidden_state|pooler|embedding/.test(logits)
  const architectures = [config.architectures].flat().filter((name) => typeof name === 'string')
  const isOther = architectures.some((name) => OTHER_CLASSES[of].test(name))
  if (logits === '' || isHidden || isOther || (dims !== undefined && dims.length !== KINDS[of].axes)) {
    throw noClassifier(graph, adapter, of, isOther ? architectures.join(', ') : got)
  }
}

const OTHER_CLASSES: Readonly<Record<Labelled, RegExp>> = {
  texts: /For(CausalLM|MaskedLM|ConditionalGeneration|TokenClassification)/,
  words: /For(CausalLM|MaskedLM|ConditionalGeneration|SequenceClassification|QuestionAnswering)/,
}

function noClassifier(graph: Graph, adapter: string | undefined, of: Labelled, got: string): UnsupportedError {
  const { shape, task, otherMethod } = KINDS[of]
  const isOther = of === 'texts' ? /TokenClassification/.test(got) : /SequenceClassification/.test(got)
  const isGenerative = graph.inputs.some(({ name }) => /^past/.test(name))
  const whose = adapter === undefined ? 'the model' : `neither the model nor the adapter ${JSON.stringify(adapter)}`
  return new UnsupportedError({
    where: 'ONNX model',
    what:
      adapter === undefined
        ? `${whose} has no head that gives labels to ${of}`
        : `${whose} has a head for labels of ${of}`,
    expected: `an output logits ${shape}, or an adapter with modules_to_save`,
    got,
    hint: isGenerative
      ? 'This model continues texts: call generate'
      : isOther
        ? `Call ${otherMethod}`
        : `Train an adapter with the task ${task}, and name it in \`adapter\``,
  })
}

export function labelsFor(count: number, names: readonly string[] | undefined): readonly string[] {
  if (names === undefined) return Array.from({ length: count }, (_, i) => `LABEL_${i}`)
  if (names.length === count) return names
  throw new MismatchError({
    where: 'id2label',
    what: 'the number of labels differs from the number of logits',
    expected: String(count),
    got: names.join(', '),
  })
}

export function checkFinite(logits: Float32Array): void {
  if (logits.every(Number.isFinite)) return
  throw new NumericError({ where: 'logits', what: 'they are not finite', hint: 'Run the model in f32' })
}

export function softmax(logits: Float32Array): number[] {
  const most = Math.max(...logits)
  const powers = Array.from(logits, (value) => Math.exp(value - most))
  const sum = powers.reduce((total, power) => total + power, 0)
  return powers.map((power) => power / sum)
}
