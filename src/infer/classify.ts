// Texts in, labels out: by the head that an adapter brings, or by the model's own logits.

import { COUNT, checkOptions, NAME, type OptionTable, orNull } from '../base/options.js'
import { mixesOf } from './adapter-choice.js'
import { floatsOf } from './heads.js'
import { type ClassifierSession, checkFinite, labelsFor, logitsOf, softmax } from './logits.js'
import type { Classification, ClassifyOptions, TextOrPair } from './session.js'
import { BATCH_KINDS, batchesOf, encodeTexts, listOfTexts, TEXT_OR_PAIR } from './text-batches.js'

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
  const source = logitsOf(session, adapter ?? undefined, 'texts')
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

/** The likeliest labels of one text. */
function ranked(logits: Float32Array, labels: readonly string[], topK: number, problemType: unknown) {
  checkFinite(logits)
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
