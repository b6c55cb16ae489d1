// Gives texts or pictures labels, with the head that an adapter brings or with the model's logits.

import { checkOptions } from '../../core/base/options.js'
import type { ImageSource } from '../../model/images/image.js'
import { inputFamily } from '../../model/inputs/family.js'
import { floatsOf } from '../../onnx/runtime/runtime.js'
import { readGraph } from '../../onnx/view/graph.js'
import { CLASSIFY_OPTIONS } from '../gen/options.js'
import type { WholeSession } from '../graphs.js'
import { IMAGE } from '../media-values.js'
import type { Classification, ClassifyInput, ClassifyOptions, TextOrPair } from '../session.js'
import { encodeAll, imageBatches, listOfTexts, TEXT_OR_PAIR, textBatches } from './batches.js'
import { checkFinite, labelsFor, logitsOf, softmax } from './logits.js'

export async function classify(
  session: WholeSession,
  inputs: ClassifyInput | readonly ClassifyInput[],
  options: ClassifyOptions = {},
): Promise<Classification | Classification[]> {
  checkOptions(options, 'classify', CLASSIFY_OPTIONS)
  const { adapter, topK = 1 } = options
  const { onnx } = session.model
  const kind = inputFamily(readGraph(onnx))?.reads === 'pictures' ? IMAGE : TEXT_OR_PAIR
  const list = listOfTexts<ClassifyInput>(inputs, kind)
  const source = logitsOf(session, adapter ?? undefined, 'texts')
  const isText = kind === TEXT_OR_PAIR
  const encoded = isText ? encodeAll(session.model, list as readonly TextOrPair[], options.maxLength) : undefined
  const batches =
    encoded === undefined
      ? imageBatches(session, source.graph, list as readonly ImageSource[], options)
      : textBatches(session.model, source.graph, encoded, options)
  const results: Classification[] = Array(list.length)
  for await (const batch of batches) {
    const logits = await source.run(batch.feeds)
    const [, count] = logits.dims
    const labels = labelsFor(count, source.labels)
    const values = floatsOf(logits)
    batch.inputs.forEach((input, row) => {
      const rowLogits = values.slice(row * count, (row + 1) * count)
      results[input] = {
        ...ranked(rowLogits, labels, topK, source.problemType),
        logits: rowLogits,
        isTruncated: encoded?.[input].isTruncated ?? false,
      }
    })
  }
  return Array.isArray(inputs) ? results : results[0]
}

function ranked(logits: Float32Array, labels: readonly string[], topK: number, problemType: unknown) {
  checkFinite(logits)
  const scores = scoresOf(logits, problemType)
  const order = [...scores.keys()].sort((a, b) => scores[b] - scores[a]).slice(0, topK)
  const best = order.map((i) => ({ label: labels[i], score: scores[i] }))
  return { ...best[0], labels: best }
}

/**
 * Returns the scores of the labels. Numbers (regression) and a single logit stay as they are. If several labels can
 * hold at once, each gets the probability of its own sigmoid; otherwise the scores are the softmax.
 */
function scoresOf(logits: Float32Array, problemType: unknown): number[] {
  if (problemType === 'multi_label_classification') return Array.from(logits, (value) => 1 / (1 + Math.exp(-value)))
  return problemType === 'regression' || logits.length === 1 ? [...logits] : softmax(logits)
}
