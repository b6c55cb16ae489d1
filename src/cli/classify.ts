// lowrank classify: labels for texts, by a model and its adapters.

import type { Classification, TextOrPair } from '../index.js'
import { printableProse } from './escape.js'
import { defineCommand, integer, repeated, UsageError } from './options.js'
import { print, printDocument, say, warn } from './terminal.js'
import { OUTPUT_OPTIONS, SESSION_OPTIONS, withSession } from './with-session.js'

/** What is printed of one text with one adapter. */
interface Result extends Omit<Classification, 'logits'> {
  adapter: string | null
  text: string
  textPair?: string
  logits: number[]
}

export const classify = defineCommand({
  name: 'classify',
  summary: 'choose a label for each text',
  about: [
    'Prints the most likely label of each text, and its probability. An adapter that was trained with --task text-classification contains its labels.',
    'With several adapters, it loads the model once and classifies each text with each adapter.',
  ].join('\n'),
  examples: [
    'lowrank classify --model tests/golden/text-classification/encoder --adapter tests/golden/text-classification/encoder/golden/adapter-init --text "The sea was calm."',
    'lowrank classify --model tests/golden/text-classification/classifier --text "a good day" --text "a grim night" --top-k 3 --json',
  ],
  options: {
    ...SESSION_OPTIONS,
    text: repeated('TEXT', 'text to classify'),
    textPair: repeated('TEXT', 'second text of a pair: one for each --text'),
    topK: integer('show the N most likely labels', { fallback: 1 }),
    maxLength: integer('longer texts are cut to N tokens; default: the most that the model can read'),
    ...OUTPUT_OPTIONS,
  },
  async run({ text: texts, textPair: pairs, topK, maxLength, json, ...where }) {
    if (texts.length === 0) throw new UsageError('--text TEXT is missing')
    if (pairs.length > 0 && pairs.length !== texts.length) {
      throw new UsageError(`--text-pair: one for each --text is needed, ${texts.length}, but there are ${pairs.length}`)
    }
    const inputs = texts.map((text, i): TextOrPair => (pairs.length === 0 ? text : { text, textPair: pairs[i] }))
    return withSession(where, async (session, signal) => {
      const results: Result[] = []
      for (const adapter of where.adapter.length > 0 ? where.adapter : [null]) {
        const found = await session.classify(inputs, { adapter, topK, maxLength, signal })
        if (where.adapter.length > 1 && !json) say(`${adapter}`)
        found.forEach(({ logits, ...result }, i) => {
          const pair = pairs.length > 0 ? { textPair: pairs[i] } : {}
          results.push({ adapter, text: texts[i], ...pair, ...result, logits: [...logits] })
          if (!json) print(lineOf(result.labels, texts.length > 1 ? texts[i] : undefined))
        })
        const cut = found.filter(({ isTruncated }) => isTruncated).length
        if (cut > 0) warn(`${cut} of ${texts.length} texts are too long for the model, so their ends were cut`)
      }
      if (json) printDocument({ results })
      return 0
    })
  },
})

/** The labels of one text, and behind them the text where there are several. */
function lineOf(labels: Classification['labels'], text: string | undefined): string {
  const scored = labels.map(({ label, score }) => `${printableProse(label)} ${score.toFixed(3)}`).join(', ')
  return text === undefined ? scored : `${scored}  ${printableProse(text.replaceAll(/\s+/g, ' '))}`
}
