// Tells whether a model continues texts. A separate file, so that sessions load no training code.

import { UnsupportedError } from '../../core/base/errors.js'
import type { Graph } from '../../onnx/view/graph.js'
import { inputFamily } from '../inputs/family.js'
import type { Model } from '../model-folder.js'
import { findLinears, logitsDims, logitsName } from './linears.js'

const NOT_CAUSAL =
  /For(MaskedLM|PreTraining|NextSentencePrediction|(Sequence|Token|Image|Audio)Classification|QuestionAnswering|MultipleChoice)$/

/** Throws UnsupportedError for encoders, and for logits that do not predict the next token. */
export function checkCausal(model: Pick<Model, 'config' | 'vocabularySize'>, graph: Graph): void {
  const isEncoder = inputFamily(graph)?.isEncoder === true
  const refuse = (got: string) =>
    notCausal(isEncoder ? 'it is an encoder, which does not continue texts' : undefined, got)
  const architectures = [model.config?.architectures].flat().filter((name) => typeof name === 'string')
  const architecture = architectures.find((name) => NOT_CAUSAL.test(name))
  if (architecture !== undefined) throw refuse(architecture)
  const [logits, dims] = [logitsName(graph), logitsDims(graph)]
  if (logits === '' || /hidden_state|pooler|embedding/.test(logits)) throw refuse(`output ${logits || 'none'}`)
  if (dims !== undefined && dims.length !== 3) throw refuse(`${logits} of ${dims.length} axes`)
  checkWidth(model, dims?.at(-1) ?? findLinears(graph).find(({ isHead }) => isHead)?.d)
}

export function notCausal(what = 'it does not continue texts', got?: string): UnsupportedError {
  return new UnsupportedError({
    where: 'ONNX model',
    what,
    expected: 'a causal language model, with logits (batch, sequence, vocabulary) that do not see the tokens to come',
    ...(got !== undefined && { got }),
    hint: 'Sessions run encoders on tensors (run) and classify texts with them (classify)',
  })
}

export function checkWidth({ vocabularySize = 0 }: Pick<Model, 'vocabularySize'>, width: number | undefined): void {
  if (width === undefined || width >= vocabularySize) return
  throw new UnsupportedError({
    where: 'ONNX model',
    what: 'its output is not as wide as its vocabulary: it does not continue texts',
    expected: `${vocabularySize} logits`,
    got: String(width),
  })
}
