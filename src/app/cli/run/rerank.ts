// lowrank rerank: orders documents by how well they answer a question.

import { rowsOfInput } from '../../../api/node/command-line.js'
import { flags } from '../flags.js'
import { defineCommand, repeated, required, text, UsageError } from '../options.js'
import { print, printableProse, printDocument } from '../show/terminal.js'
import { OUTPUT_OPTIONS, SESSION_OPTIONS, withSession } from './with-session.js'

export const rerank = defineCommand({
  name: 'rerank',
  summary: 'order documents by how well they answer a question',
  about: [
    'Prints the documents with their scores, best first: of a model with one label (a cross-encoder), as --task reranking trains it, or else by the cosine of vectors.',
    'Give documents with --document, or a file of them with --data.',
  ].join('\n'),
  examples: [
    'lowrank rerank --model tests/golden/text-classification/encoder --query "How was the sea?" --document "The sea was calm." --document "A day."',
  ],
  subject: ['model'],
  options: {
    ...SESSION_OPTIONS,
    query: required('TEXT', 'the question'),
    document: repeated('TEXT', 'a document'),
    data: text('FILE', 'documents: records with "text"; - is stdin'),
    ...flags('RerankOptions', 'topN', 'maxLength', 'batchSize'),
    ...OUTPUT_OPTIONS,
  },
  async run({ query, document, data, topN, maxLength, batchSize, json, ...where }) {
    const texts = [...document]
    if (data !== undefined) for await (const { text } of rowsOfInput(data, undefined)) texts.push(text)
    if (texts.length === 0) throw new UsageError('--document TEXT is missing, or --data FILE')
    return withSession(where, async (session, signal) => {
      const adapter = where.adapter[0] ?? null
      const ranked = await session.rerank(query, texts, { adapter, topN, maxLength, batchSize, signal })
      if (json) printDocument({ results: ranked.map((result) => ({ ...result, text: texts[result.index] })) })
      else for (const { index, score } of ranked) print(`${score.toFixed(4)}  ${printableProse(texts[index])}`)
      return 0
    })
  },
})
