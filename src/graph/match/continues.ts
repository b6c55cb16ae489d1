// Tells models that continue texts from others. It stands apart, so that sessions load no code of training.

import { UnsupportedError } from '../../base/errors.js'
import { inputFamily } from '../inputs/family.js'
import type { Model } from '../model-folder.js'
import type { Graph } from '../view/graph.js'
import { findLinears, logitsDims, logitsName } from './linears.js'

/** Endings of architectures that predict something else than the next token. */
const NOT_CAUSAL =
  /For(MaskedLM|PreTraining|NextSentencePrediction|(Sequence|Token|Image|Audio)Classification|QuestionAnswering|MultipleChoice)$/

/** Refuses logits of other things than the next token, and models that see the tokens to come. */
export function checkCausal(model: Pick<Model, 'config' | 'vocabularySize'>, graph: Graph): void {
  const isEncoder = inputFamily(graph)?.isEncoder === true
  const refuse = (got: string) =>
    notCausal(isEncoder ? 'it is an encoder, which does not continue texts' : undefined, got)
  const architectures = [model.config?.architectures].flat().filter((name) => typeof name === 'string')
  const other = architectures.find((name) => NOT_CAUSAL.test(name))
  if (other !== undefined) throw refuse(other)
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
