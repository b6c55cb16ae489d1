// Gives the words of texts tags, and finds the entities that the tags spell.

import { anyOf, checkOptions, isObject, kind, STRING } from '../../core/base/options.js'
import { entitiesOf } from '../../model/heads/entities.js'
import { encodeTagged } from '../../model/inputs/token-batch.js'
import type { Span } from '../../model/text/added-tokens.js'
import { joinWords, wordsIn } from '../../model/text/words.js'
import { floatsOf } from '../../onnx/runtime/runtime.js'
import { TAG_OPTIONS } from '../gen/options.js'
import type { WholeSession } from '../graphs.js'
import type { TaggedWord, Tagging, TagOptions, TextOrWords } from '../session.js'
import { listOfTexts, textBatches } from './batches.js'
import { checkFinite, labelsFor, logitsOf, softmax } from './logits.js'

const WORDS = kind('an object with words', (value) => {
  if (!isObject(value)) return false
  const { words, ...others } = value
  const isList = Array.isArray(words) && words.every((word) => typeof word === 'string')
  return isList && Object.keys(others).length === 0
})
const TEXT_OR_WORDS = anyOf(STRING, WORDS)

interface Input extends ReturnType<typeof encodeTagged> {
  readonly text: string
  readonly words: readonly Span[]
}

export async function tag(
  session: WholeSession,
  texts: TextOrWords | readonly TextOrWords[],
  options: TagOptions = {},
): Promise<Tagging | Tagging[]> {
  checkOptions(options, 'tag', TAG_OPTIONS)
  const list = listOfTexts(texts, TEXT_OR_WORDS)
  const { adapter, maxLength } = options
  const source = logitsOf(session, adapter ?? undefined, 'words')
  const inputs = list.map((text) => inputOf(session, text, maxLength))
  const results: Tagging[] = Array(list.length)
  for await (const batch of textBatches(session.model, source.graph, inputs, options)) {
    const logits = await source.run(batch.feeds)
    const [, sequence, count] = logits.dims
    const labels = labelsFor(count, source.labels)
    const values = floatsOf(logits)
    batch.inputs.forEach((text, row) => {
      const rowLogits = values.subarray(row * sequence * count, (row + 1) * sequence * count)
      results[text] = taggingOf(inputs[text], rowLogits, labels)
    })
  }
  return Array.isArray(texts) ? results : results[0]
}

function inputOf({ model }: WholeSession, given: TextOrWords, limit = Number.POSITIVE_INFINITY): Input {
  const { text, spans } = typeof given === 'string' ? { text: given, spans: wordsIn(given) } : joinWords(given.words)
  return { ...encodeTagged(model, text, spans, Math.min(limit, model.contextLength ?? limit)), text, words: spans }
}

function taggingOf(
  { text, words: spans, firsts, isTruncated }: Input,
  logits: Float32Array,
  labels: readonly string[],
): Tagging {
  const words = spans.flatMap(({ start, end }, i): TaggedWord[] => {
    if (firsts[i] < 0) return []
    const wordLogits = logits.subarray(firsts[i] * labels.length, (firsts[i] + 1) * labels.length)
    checkFinite(wordLogits)
    const scores = softmax(wordLogits)
    const best = scores.indexOf(Math.max(...scores))
    return [{ text: text.slice(start, end), start, end, tag: labels[best], score: scores[best] }]
  })
  const entities = entitiesOf(words.map((word) => word.tag)).map(({ type, start: from, end: to }) => {
    const [{ start }, { end }] = [words[from], words[to - 1]]
    const score = words.slice(from, to).reduce((sum, word) => sum + word.score, 0) / (to - from)
    return { label: type, text: text.slice(start, end), start, end, score }
  })
  return { words, entities, isTruncated }
}
