// lowrank embed: vectors of texts, by a model and an adapter.

import { flags } from '../flags.js'
import { defineCommand, repeated, toggle, UsageError } from '../options.js'
import { print, printDocument } from '../show/terminal.js'
import { OUTPUT_OPTIONS, SESSION_OPTIONS, withSession } from './with-session.js'

export const embed = defineCommand({
  name: 'embed',
  summary: 'turn texts into vectors',
  about: [
    'Prints one line for each text: its vector, as a JSON list. Texts with a similar meaning have vectors with a large dot product.',
    'The model’s file 1_Pooling/config.json says how one vector is made from a text. Without this file, it is the mean of the vectors of the tokens.',
  ].join('\n'),
  examples: [
    'lowrank embed --model tests/golden/text-classification/encoder --adapter tests/golden/embedding/adapter-init --text "The sea was calm."',
    'lowrank embed --model tests/golden/text-classification/encoder --text "a good day" --text "a grim night" --json',
  ],
  subject: ['model'],
  options: {
    ...SESSION_OPTIONS,
    text: repeated('TEXT', 'text to embed'),
    raw: toggle('do not scale vectors to length 1'),
    ...flags('EmbedOptions', 'pooling', 'dimensions', 'maxLength'),
    ...OUTPUT_OPTIONS,
  },
  async run({ text: texts, raw, pooling, dimensions, maxLength, json, ...where }) {
    if (texts.length === 0) throw new UsageError('--text TEXT is missing')
    return withSession(where, async (session, signal) => {
      const results: { adapter: string | null; text: string; vector: number[] }[] = []
      for (const adapter of where.adapter.length > 0 ? where.adapter : [null]) {
        const settings = { adapter, normalize: !raw, pooling, dimensions, maxLength, signal }
        const vectors = await session.embed(texts, settings)
        vectors.forEach((vector, i) => void results.push({ adapter, text: texts[i], vector: [...vector] }))
      }
      if (json) printDocument({ results })
      else for (const { vector } of results) print(JSON.stringify(vector))
      return 0
    })
  },
})
