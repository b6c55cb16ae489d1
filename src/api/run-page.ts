// Writes the page of a finished run: report.html in its folder.

import { inspectAdapter } from '../lora/peft/inspect.js'
import type { StepMetrics } from '../train/report.js'
import { tokenLengths } from '../train/rows/facts.js'
import type { Run } from '../train/run.js'
import type { RunReport } from '../train/saved/history.js'
import type { Section } from './report/page.js'
import { reportPage } from './report/page.js'
import { runReport } from './report/run.js'

const SHOWN_LABELS = 20
const number = (value: number) => value.toLocaleString('en')

export async function pageOfRun(
  { options, around, task, adapter, settings, facts: data, records }: Run,
  report: RunReport,
  steps: readonly StepMetrics[],
): Promise<string> {
  // Take only the last part of the path, so that the same run gives the same bytes wherever the folder is.
  const name = options.out?.name.split(/[/\\]/).findLast((part) => part !== '') ?? ''
  const { rank, alpha, dropout, seed } = adapter.config
  const facts: [string, string][] = [
    ['base', adapter.config.baseModel ?? 'not named'],
    ['task', task.name],
    ['data', [around.sources?.data ?? 'records in memory'].flat().join(', ')],
    ['steps', `${number(report.steps)}, with ${number(report.tokens)} tokens`],
  ]
  const [first, last] = [report.evaluations[0], report.evaluations.at(-1)]
  if (last !== undefined && last !== first) {
    const change = `${first.loss.toFixed(2)} to ${last.loss.toFixed(2)}`
    const how = last.loss < first.loss ? 'fell' : 'went'
    facts.unshift([
      'result',
      `the loss on held-out records ${how} from ${change} between steps ${first.step} and ${last.step}`,
    ])
  }
  facts.unshift(...report.warnings.map((warning): [string, string] => ['warning', warning]))
  const lengths = tokenLengths(task, records.kept.examples)
  if (lengths) {
    const { least, median, most } = lengths
    facts.push(['lengths of records', `${number(least)} to ${number(most)} tokens, the median ${number(median)}`])
  }
  const labels = Object.entries(data.labels)
  const others = labels.length > SHOWN_LABELS ? `, and ${labels.length - SHOWN_LABELS} more` : ''
  const shown = labels.slice(0, SHOWN_LABELS).map(([label, count]) => `${label} (${count})`)
  if (labels.length > 0) facts.push(['labels', shown.join(', ') + others])
  const { layers } = await inspectAdapter(adapter)
  const changes: Section = {
    kind: 'table',
    title: 'Layers',
    columns: ['layer', 'rank', '‖s·B·A‖', 'effective rank'],
    rows: layers.map((layer) => [layer.name, layer.rank, layer.normDelta, layer.effectiveRank]),
  }
  const run = {
    name,
    steps,
    evaluations: report.evaluations,
    samples: report.samples,
    settings: { rank, alpha, dropout, seed, ...settings },
  }
  const page = runReport([run], name, [changes])
  return reportPage({ ...page, sections: [{ kind: 'facts', facts }, ...page.sections] })
}
