// "Is it as good?": scores of the old model, the new adapter and its base on the same prompts, with intervals.

import { bootstrap, type Interval, type Statistic } from '../../api/export/measures.js'
import type { Cell, Section } from '../../api/report/page.js'
import type { Measure } from './measures.js'
import type { Message, Prompt } from './prompts.js'

/** Below this number of prompts there is no verdict. */
export const LEAST_PROMPTS = 200
/** A loss of at most this much counts as good enough. */
const MARGIN = 0.02
/** The difference that the named number of prompts would show. */
const SHOWN_DIFFERENCE = 0.05

export interface Answer {
  readonly answer: Message
  readonly finish: string
  readonly ms?: number | undefined
  /** Dollars; undefined if nobody knows. */
  readonly cost?: number | undefined
}

export type Contestant = 'old' | 'base' | 'new'

/** A prompt with the answers to it, by who gave them. */
export interface Answered {
  readonly prompt: Prompt
  readonly answers: Readonly<Partial<Record<Contestant, Answer>>>
}

export interface Row {
  readonly name: Contestant
  readonly score: Interval
  /** The score minus that of the first row, paired by prompt; null for the first. */
  readonly difference: Interval | null
  /** Dollars for 1,000 answers. null: not known. */
  readonly costPerThousand: number | null
  readonly medianMs: number | null
  readonly slowMs: number | null
}

export interface Comparison {
  readonly metric: string
  /** Prompts that all have answered to the end. */
  readonly prompts: number
  /** Prompts with an answer of the old or the new model that a limit cut: unfinished, not wrong. */
  readonly unfinished: number
  /** Prompts that someone gave no answer to, or that have nothing to measure. */
  readonly unanswered: number
  /** The first is what the others are compared with. */
  readonly rows: readonly Row[]
  /** What the new adapter has of the old model's gain over the base. */
  readonly shareOfGain: Interval | null
  readonly verdict: string
}

export async function compare(
  answered: readonly Answered[],
  contestants: readonly Contestant[],
  measure: Measure,
): Promise<Comparison> {
  const isWhole = ({ answers }: Answered) => contestants.every((name) => answers[name] !== undefined)
  // A base that never comes to an end would leave no prompt to compare the others on: it is scored as it is.
  const isFinished = ({ answers }: Answered) => {
    return contestants.every((name) => name === 'base' || answers[name]!.finish !== 'length')
  }
  const whole = answered.filter(isWhole)
  const finished = whole.filter(isFinished)
  const scored: { answers: Answer[]; scores: number[] }[] = []
  for (const { prompt, answers } of finished) {
    const given = contestants.map((name) => answers[name]!)
    const scores = await Promise.all(given.map(({ answer }) => measure.score(prompt, answer, given[0].answer)))
    if (!scores.includes(null)) scored.push({ answers: given, scores: scores as number[] })
  }
  const mean = (records: ArrayLike<number>, of: number) =>
    Array.from(records, (record) => scored[record].scores[of]).reduce((sum, score) => sum + score, 0) / records.length
  const [old, base, ours] = (['old', 'base', 'new'] as const).map((name) => contestants.indexOf(name))
  const statistics = contestants.map(
    (_, i): Statistic =>
      (records) => {
        const score = mean(records, i)
        const hasShare = contestants.length === 3 && i === ours
        const gain = () => (score - mean(records, base)) / (mean(records, old) - mean(records, base))
        return { score, ...(hasShare && { share: gain() }) }
      },
  )
  const measured = scored.length === 0 ? [] : bootstrap(statistics, scored.length, { resamples: 2000, seed: 42 })
  const rows = measured.map(({ metrics, differences }, i): Row => {
    const given = scored.map(({ answers }) => answers[i])
    const [times, costs] = [given.flatMap(({ ms }) => ms ?? []), given.flatMap(({ cost }) => cost ?? [])]
    times.sort((a, b) => a - b)
    const total = costs.reduce((sum, cost) => sum + cost, 0)
    return {
      ...{ name: contestants[i], score: metrics.score, difference: differences?.score ?? null },
      costPerThousand: costs.length < given.length ? null : (1000 * total) / costs.length,
      medianMs: times[times.length >> 1] ?? null,
      slowMs: times[Math.floor(0.95 * times.length)] ?? null,
    }
  })
  return {
    metric: measure.name,
    prompts: scored.length,
    unfinished: whole.length - finished.length,
    unanswered: answered.length - whole.length + finished.length - scored.length,
    rows,
    shareOfGain: measured.at(ours)?.metrics.share ?? null,
    verdict: verdictOf(rows, scored.length),
  }
}

function verdictOf(rows: readonly Row[], prompts: number): string {
  const { difference } = rows.find(({ name }) => name === 'new') ?? {}
  if (!difference) return 'There are no prompts to compare on.'
  const hasOld = rows[0].name === 'old'
  const against = hasOld ? 'the old model' : 'its base'
  const { value, low, high } = difference
  if (prompts < LEAST_PROMPTS || low === null || high === null) {
    const half = low === null || high === null ? 0.5 : (high - low) / 2
    const needed = Math.max(LEAST_PROMPTS, Math.ceil(prompts * (half / SHOWN_DIFFERENCE) ** 2))
    return `No verdict: ${prompts} prompts are too few. It would need about ${needed}.`
  }
  const points = (share: number) => `${Math.abs(100 * share).toFixed(1)} points`
  const range = `95 %: ${(100 * low).toFixed(1)} to ${(100 * high).toFixed(1)} points`
  if (low > 0) return `Better than ${against} by ${points(value)} (${range}).`
  if (hasOld && low >= -MARGIN) return `As good as ${against}: at most ${points(low)} worse (${range}).`
  if (high < 0) return `${hasOld ? 'Not good enough: worse' : 'Worse'} than ${against} by ${points(value)} (${range}).`
  if (!hasOld) return `Not surely better than ${against} (${range}).`
  return `Not decided: it may be worse than ${against} by up to ${points(low)} (${range}).`
}

const NAMES: Readonly<Record<Contestant, string>> = { old: 'old model', base: 'base', new: 'new adapter' }
const COLUMNS = ['model', 'score', '95 %', 'minus the first', '95 %', '$ per 1,000', 'median ms', '95 % within ms']

export function sectionsOf(title: string, comparison: Comparison): Section[] {
  const { rows, prompts, unfinished, unanswered, shareOfGain: share, verdict } = comparison
  const percent = (value: number) => Number((100 * value).toFixed(1))
  const cells = (interval: Interval | null): Cell[] => {
    if (interval === null) return [null, null]
    const { value, low, high } = interval
    return [percent(value), low === null || high === null ? null : `${percent(low)} to ${percent(high)}`]
  }
  const round = (value: number | null, digits: number) => value && Number(value.toFixed(digits))
  const counts = `${prompts} compared, ${unfinished} unfinished, ${unanswered} without an answer`
  const shown = share && [['share of the old gain', cells(share).join(' %, 95 %: ')] as const]
  return [
    { kind: 'facts', title, facts: [['verdict', verdict], ['prompts', counts], ...(shown ?? [])] },
    {
      kind: 'table',
      title: `${title}: scores in percent`,
      columns: COLUMNS,
      rows: rows.map(({ name, score, difference, costPerThousand, medianMs, slowMs }) => [
        ...[NAMES[name], ...cells(score), ...cells(difference)],
        ...[round(costPerThousand, 4), round(medianMs, 0), round(slowMs, 0)],
      ]),
    },
  ]
}
