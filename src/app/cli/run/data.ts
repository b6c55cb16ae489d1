// lowrank data: shows what is in files of records, and what is wrong with them, before you train.

import type { CheckDataOptions, DataReport, PreviewExample } from '../../../api/index.js'
import { readChatTemplate } from '../../../api/node/command-line.js'
import { counted } from '../../../core/base/errors.js'
import { flags } from '../flags.js'
import { choice, defineCommand, MODEL, RUNS, repeated, text, toggle } from '../options.js'
import { colors, complain, print, printable, printDocument, say, table, thousands, warn } from '../show/terminal.js'

const SHOWN = 20
const BAR = 40
const [BETWEEN, OPEN, CLOSE, LINE_END] = ['│', '⟦', '⟧', '⏎']

export const data = defineCommand({
  name: 'data',
  summary: 'check files of records before training on them',
  about: [
    'Shows the task that the records fit, how many there are and how long they are, their labels, records that are there twice,',
    'evaluation records that are in the training data, and every record that cannot be used, with its file and line.',
    'With --model, also shows what training on that model would cut, leave out or not learn. --preview 3 shows three examples as tokens.',
  ].join('\n'),
  examples: [
    'lowrank data models/data/chats.jsonl',
    'lowrank data models/data/scripture.jsonl --eval-data models/data/scripture.eval.jsonl --model models/union-3m --preview 1',
  ],
  subject: ['data'],
  options: {
    ...flags('CheckDataOptions', 'data', 'evalData'),
    model: text(MODEL, RUNS),
    ...flags('LoadModelOptions', 'dtype'),
    task: text('NAME', 'what a model would learn; default: the task that the first record fits'),
    ...flags('CheckDataOptions', 'columns', 'maxLength', 'chatTemplate', 'chatTemplateArgs', 'termsRead', 'preview'),
    fromStore: toggle('print the chats that lowrank serve --train has stored in this folder, as records'),
    where: repeated('NAME=VALUE', 'with --from-store, only chats with this metadata, such as rating=good'),
    method: choice(['supervised', 'kto'], 'with --from-store, what the records are for; kto learns from ratings'),
    json: toggle('print one JSON document on stdout'),
  },
  async run({ json, chatTemplate, fromStore, where, method, ...options }) {
    if (fromStore) {
      const { storedRows } = await import('../../../serve/node/entry.js')
      const metadata = Object.fromEntries(where.map((pair) => pair.split(/=(.*)/s).slice(0, 2)))
      process.stdout.write(await storedRows(String(options.data), { metadata, method }))
      return 0
    }
    const node = await import('../../../api/node.js')
    const task = options.task as CheckDataOptions['task']
    const report = await node.checkData({ ...options, task, chatTemplate: await readChatTemplate(chatTemplate) })
    if (json) printDocument({ ...report })
    else show(report)
    const { invalid, evalInTraining, duplicates, records } = report
    if (evalInTraining.length > 0) {
      const some = evalInTraining.slice(0, 3).join('; ')
      warn(`${thousands(evalInTraining.length)} evaluation records are in the training data too: ${some}`)
    }
    for (const { message } of json ? [] : invalid.slice(0, SHOWN)) complain('problem', message)
    if (!json && invalid.length > SHOWN) say(`… and ${invalid.length - SHOWN} more: --json has all`)
    if (invalid.length > 0) say(`Records that cannot be used: ${thousands(invalid.length)}`)
    else if (records === 0) say('There are no records in these files')
    if (duplicates > 0) warn(`${thousands(duplicates)} of ${thousands(records)} records are there twice`)
    for (const [note, count] of Object.entries(report.notes)) {
      warn(`${thousands(count)} of ${thousands(records)} records ${note}`)
    }
    if (records > 0 && report.learnable === 0) complain('problem', 'no record has a target to learn from')
    return invalid.length > 0 || report.learnable === 0 ? 1 : 0
  },
})

function show({ task, records, evalRecords, fields, lengths, labels, examples }: DataReport): void {
  const evaluated = evalRecords > 0 ? `, and ${thousands(evalRecords)} to evaluate` : ''
  const fit =
    records > 0
      ? `${records === 1 ? 'It fits' : 'They fit'} the task ${colors.bold(task)}`
      : `None fits the task ${colors.bold(task)}`
  print(`${colors.bold(counted(records, 'record'))}${evaluated}. ${fit}.`)
  if (records > 0) print(table([['fields', 'records'], ...Object.entries(fields).slice(0, SHOWN)]))
  if (lengths !== null) {
    const { unit, total, least, median, most, histogram } = lengths
    print(
      `\n${thousands(total)} ${unit}: from ${thousands(least)} to ${thousands(most)}, half up to ${thousands(median)}`,
    )
    const largest = Math.max(...histogram.map(({ count }) => count))
    const rows = histogram.map(({ below, count }) => [
      `below ${thousands(below)}`,
      '█'.repeat(Math.ceil((BAR * count) / largest)),
      count,
    ])
    print(table([[unit, '', 'records'], ...rows]))
  }
  if (labels !== null) {
    const all = Object.entries(labels)
    const sum = all.reduce((total, [, count]) => total + count, 0)
    const rows = all.slice(0, SHOWN).map(([label, count]) => [label, count, `${((100 * count) / sum).toFixed(1)} %`])
    print('')
    print(table([['label', 'count', 'share'], ...rows]))
    if (all.length > SHOWN) print(printable(`… and ${all.length - SHOWN} more labels`))
  }
  if (examples.length > 0) print('')
  if (examples.length > 0) printPreview(examples)
}

function printPreview(examples: readonly PreviewExample[]): void {
  for (const { where, tokens, label } of examples) {
    const learned = tokens.filter(({ counts }) => counts).length
    const target = label === undefined ? `${learned} of them count` : `label: ${label}`
    print(colors.bold(printable(`${where}: ${counted(tokens.length, 'token')}, ${target}`)))
    let line = ''
    for (const [i, { text, counts }] of tokens.entries()) {
      const opens = counts && !tokens[i - 1]?.counts
      const closes = counts && !tokens[i + 1]?.counts
      const shown = text.split('\n').map(printable).join(LINE_END)
      line += `${opens ? OPEN : ''}${counts ? colors.green(shown) : shown}${closes ? CLOSE : ''}`
      const isLineEnd = text.endsWith('\n')
      if (!isLineEnd && i < tokens.length - 1) line += colors.dim(BETWEEN)
      if (isLineEnd || i === tokens.length - 1) {
        print(line)
        line = ''
      }
    }
    print('')
  }
  print(`${OPEN}…${CLOSE} counts for the loss. ${BETWEEN} stands between tokens, ${LINE_END} for the end of a line.`)
}
