// lowrank evaluate: measures how much better an adapter is than its base, on records that it was not trained on.

import type { AdapterToMerge, EvaluatedModel, EvaluateReport, Interval } from '../../../api/index.js'
import { readChatTemplate } from '../../../api/node/command-line.js'
import type { Cell, Report } from '../../../api/report/page.js'
import { counted } from '../../../core/base/errors.js'
import { flags } from '../flags.js'
import { weightedAdapters } from '../manage/merge-options.js'
import { defineCommand, MODEL, repeated, text, toggle, UsageError } from '../options.js'
import { interruptible } from '../show/interrupt.js'
import { refusePage, writePage } from '../show/outputs.js'
import { colors, print, printable, printDocument, say, table, thousands, warn } from '../show/terminal.js'
import { baseOfAdapter, OUTPUT_OPTIONS, PROMPT_OPTIONS, SESSION_OPTIONS, withPrompts } from './with-session.js'

const { allowMissing: _allowMissing, ...SOURCES } = SESSION_OPTIONS

const SHOWN = 5

export const evaluate = defineCommand({
  name: 'evaluate',
  summary: 'measure adapters on records, and compare them with their base',
  about: [
    'Prints the loss and the metrics of the task for the base and for each adapter, with intervals that hold 95 % of a bootstrap over the records,',
    'the difference to the base, and the records that differ most. Use records that are not in the training data.',
    'With --corpus, the records are questions, and the metrics say how well vectors find their documents among all documents; equal scores keep the order of the corpus.',
    'With --measure calls, the records are chats with tools: are the right functions called, with the right arguments? `grammar.` measures are of calls that are kept to the schemas.',
    'With --generate, the models also answer the records, and the answers are compared with the wanted ones: exact match, ROUGE-L and chrF.',
  ].join('\n'),
  examples: [
    'lowrank evaluate --model models/union-3m --adapter out/scripture --data models/data/scripture.eval.jsonl',
    'lowrank evaluate --adapter out/scripture --data models/data/scripture.eval.jsonl --html out/evaluation.html',
  ],
  subject: ['adapter'],
  options: {
    ...SOURCES,
    weight: repeated('W', 'strength of the adapter that stands before this option; default 1'),
    mix: toggle('evaluate the sum of all adapters, and not each adapter'),
    ...flags(
      'EvaluateOptions',
      'data',
      'task',
      'taskOptions',
      'columns',
      'chatTemplate',
      'chatTemplateArgs',
      'maxLength',
    ),
    ...flags('EvaluateOptions', 'corpus', 'at', 'dimensions', 'precision', 'rescore', 'measure', 'match'),
    ...PROMPT_OPTIONS,
    ...flags('EvaluateOptions', 'generate', 'judge', 'judgeModel', 'maxNewTokens', 'batchSize'),
    ...flags('EvaluateOptions', 'resamples', 'seed', 'differing'),
    html: text('FILE', 'write a report in one HTML file: the metrics, and the records that differ most'),
    overwrite: toggle('replace the file of --html if it exists'),
    ...OUTPUT_OPTIONS,
  },
  async run(values, { occurrences }) {
    const { model: named, adapter: folders, weight: _, mix, chatTemplate, html, overwrite, json, ...rest } = values
    const options = withPrompts(rest)
    if (named === undefined && folders.length === 0) throw new UsageError(`--model ${MODEL} is missing`)
    if (html !== undefined) await refusePage(html, overwrite, 'evaluate')
    const weighted = weightedAdapters(occurrences)
    const node = await import('../../../api/node.js')
    const source = named ?? (await baseOfAdapter(folders[0]))
    const report = await interruptible('Stopping.', async (signal, progress) =>
      node.evaluate({
        ...options,
        model: source,
        judgeKey: process.env.LOWRANK_JUDGE_KEY,
        adapters: adaptersOf(weighted, mix),
        task: options.task as Parameters<typeof node.evaluate>[0]['task'],
        at: options.at as number[] | undefined,
        chatTemplate: await readChatTemplate(chatTemplate),
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
    if (html !== undefined) await writePage(html, pageOf(report, source), overwrite)
    if (json) printDocument({ ...report })
    else show(report)
    return 0
  },
})

function adaptersOf(
  weighted: readonly { adapter: string; weight?: number }[],
  isMix: boolean,
): Record<string, string | AdapterToMerge[]> {
  const labelOf = ({ adapter, weight }: (typeof weighted)[number]) =>
    weight === undefined ? adapter : `${adapter} × ${weight}`
  if (isMix && weighted.length > 0) return { [weighted.map(labelOf).join(' + ')]: [...weighted] }
  return Object.fromEntries(
    weighted.map((item) => [labelOf(item), item.weight === undefined ? item.adapter : [item]] as const),
  )
}

function show({ task, records, documents, tokens, models, differBy, differing }: EvaluateReport): void {
  const isCalls = models[0].functions !== undefined
  const what =
    documents === undefined
      ? counted(records, isCalls ? 'request' : 'record')
      : `${counted(records, 'question')}, ${counted(documents, 'document')}`
  say(`${what}, ${counted(tokens, 'token')}, task ${task}`)
  const names = Object.keys(models[0].metrics)
  for (const model of models) {
    print(colors.bold(printable(nameOf(model))))
    print(
      table([
        ['metric', 'value', '95 %', ...(model.differences === null ? [] : [`minus ${nameOf(models[0])}`, '95 %'])],
        ...names.map((name) => [
          name,
          ...cells(model.metrics[name]),
          ...(model.differences === null ? [] : cells(model.differences[name])),
        ]),
      ]),
    )
    if (model.judged !== undefined) {
      const { won, tied, lost } = model.judged
      print(`Judged: ${won} better, ${tied} as good, ${lost} worse`)
    }
    if (isCalls)
      print(
        printable(
          callTables(model)
            .map(({ columns, rows }) => table([columns, ...rows]))
            .join('\n\n'),
        ),
      )
    print('')
  }
  if (differing.length === 0) return
  const title = isCalls ? 'Wrong calls' : `Records that differ most in ${differBy}`
  print(`${title}, as ${models.map(nameOf).join(' → ')}:`)
  for (const { where, record, values, wanted, answers } of differing.slice(0, SHOWN)) {
    const line = `${where}: ${values.map(figure).join(' → ')}`
    print(printable(`${line}  ${record.length > 100 ? `${record.slice(0, 100)}…` : record}`))
    if (answers !== undefined && documents === undefined)
      print(printable(`  wanted ${JSON.stringify(wanted)}, written ${JSON.stringify(answers)}`))
  }
}

/** How each function was called, and what was called in place of what. */
function callTables({ functions = [], confusions = [] }: EvaluatedModel) {
  const names = confusions.map(({ wanted, called, count }) => [wanted ?? 'no call', called ?? 'no call', String(count)])
  return [
    {
      columns: ['function', 'due', 'called', 'right'],
      rows: functions.map(({ name, due, called, right }) => [name, ...[due, called, right].map(String)]),
    },
    { columns: ['wanted', 'called', 'times'], rows: names },
  ]
}

function nameOf({ name }: EvaluatedModel): string {
  return name ?? 'base'
}

function cells(interval: Interval | undefined): [string, string] {
  if (interval === undefined) return ['', '']
  const { value, low, high } = interval
  return [figure(value), low === null || high === null ? '' : `${figure(low)} to ${figure(high)}`]
}

function figure(value: number): string {
  if (!Number.isFinite(value)) return String(value)
  return Math.abs(value) >= 1000 ? value.toFixed(0) : value.toPrecision(4)
}

function pageOf({ task, records, documents, models, differBy, differing }: EvaluateReport, source: string): Report {
  const rows = models.flatMap((model) =>
    Object.entries(model.metrics).map(([name, interval]): Cell[] => {
      const difference = model.differences?.[name]
      return [nameOf(model), name, ...cells(interval), ...cells(difference)]
    }),
  )
  const [first] = models
  const isCalls = first.functions !== undefined
  const sampleOf = ({ where, record, values, wanted, answers }: EvaluateReport['differing'][number]) => ({
    prompt: `${where}\n${record}${isCalls ? `\nwanted: ${wanted}` : ''}`,
    answers: models.map((model, i) => ({
      label: `${nameOf(model)}: ${differBy} ${figure(values[i])}`,
      text: answers?.[i] ?? '',
    })),
  })
  const isWon = ({ values: [before, after] }: EvaluateReport['differing'][number]) => after > before
  const samples =
    documents === undefined
      ? [
          [
            isCalls ? 'Wrong calls' : `Records that differ most${differBy === null ? '' : ` in ${differBy}`}`,
            differing,
          ] as const,
        ]
      : ([
          ['Questions won', differing.filter(isWon)],
          ['Questions lost', differing.filter((record) => !isWon(record))],
        ] as const)
  return {
    title: models.map(nameOf).join(', '),
    command: 'evaluate',
    sections: [
      {
        kind: 'facts',
        facts: [
          ['model', source],
          ['task', task],
          [isCalls ? 'requests' : documents === undefined ? 'records' : 'questions', thousands(records)],
          ...(documents === undefined ? [] : [['documents', thousands(documents)] as [string, string]]),
        ],
      },
      {
        kind: 'table',
        title: 'Metrics',
        columns: ['model', 'metric', 'value', '95 %', `minus ${nameOf(first)}`, '95 %'],
        rows,
      },
      ...models.flatMap((model) =>
        (isCalls ? callTables(model) : []).map(({ columns, rows }): Report['sections'][number] => {
          return { kind: 'table', title: `${nameOf(model)}: ${columns.join(', ')}`, columns, rows }
        }),
      ),
      ...samples.map(([title, list]): Report['sections'][number] => ({
        kind: 'samples',
        title,
        samples: list.map(sampleOf),
      })),
    ],
  }
}
