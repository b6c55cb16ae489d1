// lowrank data mine: finds negatives for pairs of questions and documents.

import type { MineOptions } from '../../../api/index.js'
import { counted } from '../../../core/base/errors.js'
import { flags } from '../flags.js'
import { ADAPTER, defineCommand, MODEL, RUNS, required, text } from '../options.js'
import { interruptible } from '../show/interrupt.js'
import { say, warn } from '../show/terminal.js'

export const mine = defineCommand({
  name: 'data mine',
  summary: 'find negatives for pairs: documents that look right and are not',
  about: [
    'Prints records to train embeddings and rerankers on: pairs of questions and documents, with documents of the corpus that look like answers and are none.',
    'Documents of questions that are held out are never negatives: those of --eval-data, or of the pairs that train would hold out.',
  ].join('\n'),
  examples: [
    'lowrank data mine models/data/pairs.jsonl --corpus models/data/pairs-corpus.jsonl --model tests/golden/text-classification/encoder --relative-margin 0.05',
  ],
  subject: ['data'],
  options: {
    ...flags('MineOptions', 'data', 'corpus', 'evalData'),
    model: required(MODEL, RUNS),
    adapter: text(ADAPTER, 'adapter of this model'),
    reranker: text(MODEL, 'a reranker, whose scores replace those of the vectors if a margin or --max-score is set'),
    ...flags('MineOptions', 'form', 'numNegatives', 'relativeMargin', 'absoluteMargin', 'maxScore', 'minScore'),
    ...flags('MineOptions', 'rangeMin', 'rangeMax', 'samplingStrategy', 'seed', 'outputScores', 'chunk', 'overlap'),
    ...flags('MineOptions', 'queryPrompt', 'documentPrompt', 'columns', 'dtype', 'device', 'threads'),
  },
  async run(values) {
    const node = await import('../../../api/node.js')
    const { records, dropped } = await interruptible('Stopping.', (signal, progress) =>
      node.mineNegatives({
        ...(values as MineOptions),
        on: {
          progress: ({ done, total, name }) => progress.update(done, total, `  ${name}`),
          warning(message) {
            progress.clear()
            warn(message)
          },
        },
        signal,
      }),
    )
    for (const record of records) process.stdout.write(`${JSON.stringify(record)}\n`)
    const told = Object.entries(dropped).filter(([, count]) => count > 0)
    const what = (rule: string) => (rule === 'pairs' ? 'pairs without enough negatives' : `candidates by ${rule}`)
    for (const [rule, count] of told) say(`Left out: ${count} ${what(rule)}`)
    say(`Wrote ${counted(records.length, 'record')}`)
    return records.length > 0 ? 0 : 1
  },
})
