// lowrank embed: makes vectors of texts with a model and an adapter.

import type { EmbedOptions } from '../../../api/index.js'
import { readTextFile, rowsOfInput, writeWhole } from '../../../api/node/command-line.js'
import { counted } from '../../../core/base/errors.js'
import { flags } from '../flags.js'
import { defineCommand, repeated, text, toggle, UsageError } from '../options.js'
import { print, printDocument, say } from '../show/terminal.js'
import { checkRowOptions, ROW_OPTIONS, runRows } from './rows.js'
import { OUTPUT_OPTIONS, SESSION_OPTIONS, withSession } from './with-session.js'

export const embed = defineCommand({
  name: 'embed',
  summary: 'turn texts into vectors',
  about: [
    'Prints one line for each text: its vector, as a JSON list. With --data, writes each record of a file with its vector. All fields of a record stay: if it has a "vector" already, the new one is "predicted_vector". Texts with a similar meaning have vectors with a large dot product.',
    '--precision int8 and uint8 need a file of --ranges, which --calibrate makes once, of a few hundred documents.',
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
    ...ROW_OPTIONS,
    raw: toggle('do not scale vectors to length 1'),
    ...flags('EmbedOptions', 'inputType', 'prompt', 'pooling', 'dimensions', 'precision'),
    ranges: text('FILE', 'for int8 and uint8: the values that bytes stand for, as --calibrate writes them'),
    calibrate: text('FILE', 'write the ranges of the vectors to this file, and no vectors'),
    ...flags('EmbedOptions', 'maxLength'),
    ...OUTPUT_OPTIONS,
  },
  async run(values) {
    const { text: texts, raw, json, data, ranges: rangesFile, calibrate, ...others } = values
    const { inputType, prompt, pooling, dimensions, maxLength, precision, ...where } = others
    checkRowOptions(values, texts.length)
    if (texts.length === 0 && data === undefined) throw new UsageError('--text TEXT is missing, or --data FILE')
    return withSession(where, async (session, signal) => {
      const ranges = rangesFile === undefined ? undefined : await readRanges(rangesFile)
      const whole = { normalize: !raw, inputType, prompt, pooling, dimensions, maxLength, signal }
      if (calibrate !== undefined) {
        const all = [...texts]
        if (data !== undefined) for await (const row of rowsOfInput(data, where.columns)) all.push(row.text)
        const found = await session.calibrate(all, { ...whole, adapter: where.adapter[0] ?? null })
        await writeWhole(calibrate, `${JSON.stringify(found)}\n`, false)
        say(`Wrote ${calibrate}: ranges of ${counted(all.length, 'text')}`)
        return 0
      }
      const settings: EmbedOptions = { ...whole, precision, ranges }
      if (data !== undefined) {
        return runRows(values, async (rows) => {
          const texts = rows.map((row) => row.text)
          const vectors = await session.embed(texts, { ...settings, adapter: where.adapter[0] ?? null })
          return vectors.map((vector) => ({ vector: [...vector] }))
        })
      }
      const results: { adapter: string | null; text: string; vector: number[] }[] = []
      for (const adapter of where.adapter.length > 0 ? where.adapter : [null]) {
        const vectors = await session.embed(texts, { ...settings, adapter })
        vectors.forEach((vector, i) => void results.push({ adapter, text: texts[i], vector: [...vector] }))
      }
      if (json) printDocument({ results })
      else for (const { vector } of results) print(JSON.stringify(vector))
      return 0
    })
  },
})

async function readRanges(file: string): Promise<EmbedOptions['ranges']> {
  const text = await readTextFile(file)
  try {
    return JSON.parse(text)
  } catch {
    throw new UsageError(`--ranges: ${file} is no JSON; --calibrate FILE writes ranges`)
  }
}
