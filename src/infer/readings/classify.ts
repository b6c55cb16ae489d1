// Texts or pictures in, labels out: by the head that an adapter brings, or by the model's own logits.

import { checkOptions } from '../../base/options.js'
import { takesImages } from '../../graph/inputs/family.js'
import { readGraph } from '../../graph/view/graph.js'
import type { ImageSource } from '../../images/image.js'
import { mixesOf } from '../adapters/choice.js'
import { floatsOf } from '../feeds.js'
import { CLASSIFY_OPTIONS } from '../gen/options.js'
import type { WholeSession } from '../graphs.js'
import { IMAGE } from '../kinds.js'
import type { Classification, ClassifyInput, ClassifyOptions, TextOrPair } from '../session.js'
import { batchesOf, encodeTexts, imageBatches, listOfTexts, TEXT_OR_PAIR } from './batches.js'
import { checkFinite, labelsFor, logitsOf, softmax } from './logits.js'

/** See AdapterSession.classify. */
export async function classify(
  session: WholeSession,
  inputs: ClassifyInput | readonly ClassifyInput[],
  options: ClassifyOptions = {},
): Promise<Classification | Classification[]> {
  checkOptions(options, 'classify', CLASSIFY_OPTIONS)
  const { adapter, topK = 1 } = options
  const isImages = takesImages(readGraph(session.model.onnx.proto))
  const list = isImages ? listOfTexts(inputs as ImageSource, IMAGE) : listOfTexts(inputs as TextOrPair, TEXT_OR_PAIR)
  session.checkMixes(mixesOf(adapter, undefined))
  const source = logitsOf(session, adapter ?? undefined, 'texts')
  const encoded = isImages ? undefined : encodeTexts(session.model, list as readonly TextOrPair[], options.maxLength)
  const batches =
    encoded === undefined
      ? imageBatches(session, source.graph, list as readonly ImageSource[], options)
      : batchesOf(session.model, source.graph, encoded, options)
  const results: Classification[] = Array(list.length)
  for await (const batch of batches) {
    const logits = await source.run(batch.feeds)
    const [, count] = logits.dims
    const labels = labelsFor(count, source.labels)
    const values = floatsOf(logits)
    batch.texts.forEach((input, row) => {
      const own = values.slice(row * count, (row + 1) * count)
      results[input] = {
        ...ranked(own, labels, topK, source.problemType),
        logits: own,
        isTruncated: encoded?.[input].isTruncated ?? false,
      }
    })
  }
  return Array.isArray(inputs) ? results : results[0]
}

/** The likeliest labels of one text. */
function ranked(logits: Float32Array, labels: readonly string[], topK: number, problemType: unknown) {
  checkFinite(logits)
  const scores = scoresOf(logits, problemType)
  const order = [...scores.keys()].sort((a, b) => scores[b] - scores[a]).slice(0, topK)
  const best = order.map((i) => ({ label: labels[i], score: scores[i] }))
  return { ...best[0], labels: best }
}

/**
 * Quantities, and a single logit, are given as they are; of labels that do not exclude one another each has its own
 * probability.
 */
function scoresOf(logits: Float32Array, problemType: unknown): number[] {
  if (problemType === 'multi_label_classification') return Array.from(logits, (value) => 1 / (1 + Math.exp(-value)))
  return problemType === 'regression' || logits.length === 1 ? [...logits] : softmax(logits)
}
