// lowrank classify: gives texts, or their words, labels with a model and its adapters.

import type { AdapterSession, Classification, ClassifyInput, LoraAdapter, Tagging } from '../../../api/index.js'
import { flags } from '../flags.js'
import { defineCommand, repeated, UsageError } from '../options.js'
import { print, printableProse, printDocument, say, warn } from '../show/terminal.js'
import { checkRowOptions, ROW_OPTIONS, runRows } from './rows.js'
import { OUTPUT_OPTIONS, SESSION_OPTIONS, withSession } from './with-session.js'

export const classify = defineCommand({
  name: 'classify',
  summary: 'choose a label for each text or picture, or for words',
  about: [
    'Prints the most likely label of each text or picture, and the probability of this label. An adapter that lowrank trained contains its labels.',
    'Give pictures as files, with --image. To read them, install sharp: npm install sharp.',
    'If the adapter was trained with --task token-classification, prints the entities in each text, such as names, or the tag of each word.',
    'With --data, reads records with "text" from a file or from standard input, and writes each with its label. All fields of a record stay: if it has a "label" already, the new one is "predicted_label".',
    'With several adapters, loads the model once and classifies each text or picture with each adapter.',
  ].join('\n'),
  examples: [
    'lowrank classify --model tests/golden/text-classification/encoder --adapter tests/golden/text-classification/encoder/golden/adapter-init --text "The sea was calm."',
    'lowrank classify --model tests/golden/text-classification/classifier --text "a good day" --text "a grim night" --top-k 3 --json',
    'lowrank classify --model tests/golden/token-classification/distilbert --text "Captain Ahab saw Nantucket."',
    'lowrank classify --model tests/golden/text-classification/classifier --data models/data/scripture.eval.jsonl --format csv',
  ],
  subject: ['model'],
  options: {
    ...SESSION_OPTIONS,
    text: repeated('TEXT', 'text to classify'),
    ...ROW_OPTIONS,
    image: repeated('FILE', 'picture to classify, for models that read pictures'),
    textPair: repeated('TEXT', 'second text of a pair: one for each --text'),
    ...flags('ClassifyOptions', 'topK', 'maxLength'),
    ...OUTPUT_OPTIONS,
  },
  async run(values) {
    const { text: texts, image: images, textPair: pairs, topK, maxLength, json, data, ...where } = values
    checkRowOptions(values, texts.length + images.length)
    if (texts.length === 0 && images.length === 0 && data === undefined) {
      throw new UsageError('--text TEXT is missing, or --image FILE, or --data FILE')
    }
    if (texts.length > 0 && images.length > 0) throw new UsageError('--text and --image cannot be used together')
    if (pairs.length > 0 && pairs.length !== texts.length) {
      throw new UsageError(`--text-pair: one for each --text is needed, ${texts.length}, but there are ${pairs.length}`)
    }
    const inputsGiven = texts.length > 0 ? texts : images
    const inputs = inputsGiven.map(
      (text, i): ClassifyInput => (pairs.length === 0 ? text : { text, textPair: pairs[i] }),
    )
    return withSession(where, async (session, signal, adapters) => {
      if (data !== undefined) {
        const adapter = where.adapter[0] ?? null
        requireKind(session, false)
        const isTags = isTagger(session, adapters.get(adapter ?? ''))
        return runRows(values, async (rows) => {
          const settings = { adapter, maxLength, signal }
          const texts = rows.map(({ text }) => text)
          if (isTags) return session.tag(texts, settings)
          const pairs = rows.map(({ text, textPair }) => ({ text, textPair }))
          const found = await session.classify(pairs, { ...settings, topK })
          return found.map(({ label, score, labels }) => ({ label, score, ...(topK !== undefined && { labels }) }))
        })
      }
      const results: object[] = []
      for (const adapter of where.adapter.length > 0 ? where.adapter : [null]) {
        if (where.adapter.length > 1 && !json) say(`${adapter}`)
        requireKind(session, images.length > 0)
        if (isTagger(session, adapters.get(adapter ?? ''))) {
          if (pairs.length > 0)
            throw new UsageError('--text-pair is for labels of whole texts, but this head gives labels to words')
          const tagged = await session.tag(texts, { adapter, maxLength, signal })
          tagged.forEach((result, i) => {
            results.push({ adapter, text: texts[i], ...result })
            if (!json) print(tagsOf(result, texts.length > 1 ? texts[i] : undefined))
          })
          warnOfCuts(tagged)
          continue
        }
        const found = await session.classify(inputs, { adapter, topK, maxLength, signal })
        found.forEach(({ logits, ...result }, i) => {
          const pair = pairs.length > 0 ? { textPair: pairs[i] } : {}
          const input = images.length > 0 ? { image: inputsGiven[i] } : { text: inputsGiven[i] }
          results.push({ adapter, ...input, ...pair, ...result, logits: [...logits] })
          if (!json) print(lineOf(result.labels, inputsGiven.length > 1 ? inputsGiven[i] : undefined))
        })
        warnOfCuts(found)
      }
      if (json) printDocument({ results })
      return 0
    })
  },
})

function requireKind({ inputNames }: AdapterSession, isImages: boolean): void {
  const readsImages = inputNames.includes('pixel_values')
  if (readsImages === isImages) return
  throw new UsageError(
    readsImages ? 'this model reads pictures: use --image FILE' : 'this model reads texts: use --text TEXT',
  )
}

/** True if the head gives labels to words. It is the head of the adapter, or else of the model. */
function isTagger({ model }: AdapterSession, adapter: LoraAdapter | undefined): boolean {
  if (adapter?.config.taskType !== undefined) return adapter.config.taskType === 'TOKEN_CLS'
  return [model.config.architectures].flat().some((name) => String(name).endsWith('ForTokenClassification'))
}

function warnOfCuts(results: readonly { isTruncated: boolean }[]): void {
  const cut = results.filter(({ isTruncated }) => isTruncated).length
  if (cut > 0) warn(`${cut} of ${results.length} texts are too long for the model, so their ends were cut`)
}

/** Returns the entities of a text as lines, or if there are none, the words with their tags. */
function tagsOf({ entities, words }: Tagging, text: string | undefined): string {
  const spellsEntities = words.every(({ tag }) => /^([BIES]-.|O$)/s.test(tag))
  const parts = spellsEntities
    ? entities.map((entity) => `${entity.label} ${entity.text} ${entity.score.toFixed(3)}`)
    : words.map((word) => `${word.text}/${word.tag}`)
  const line = printableProse(parts.join(spellsEntities ? ', ' : ' ') || 'no entities')
  return text === undefined ? line : `${line}  ${oneLine(text)}`
}

function oneLine(text: string): string {
  return printableProse(text.replaceAll(/\s+/g, ' '))
}

function lineOf(labels: Classification['labels'], text: string | undefined): string {
  const scored = labels.map(({ label, score }) => `${printableProse(label)} ${score.toFixed(3)}`).join(', ')
  return text === undefined ? scored : `${scored}  ${oneLine(text)}`
}
