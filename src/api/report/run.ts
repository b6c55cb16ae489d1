// The report of one training run, or of several runs side by side.

import type { Cell, Report, Sample, Section, Series } from './page.js'

/** The part of a line of metrics.jsonl that is drawn. */
export interface RunStep {
  readonly step: number
  readonly loss: number
  readonly learningRate: number
  readonly gradientNorm: number
  /** The rewards of the step's texts, if the run learns from rewards. */
  readonly rewards?: { readonly byFunction: Readonly<Record<string, number>> } & RewardValues
}

export interface RunEvaluation {
  readonly step: number
  readonly loss: number
  readonly metrics: Readonly<Record<string, number>>
}

export interface RunFacts {
  readonly name: string
  readonly steps: readonly RunStep[]
  readonly evaluations: readonly RunEvaluation[]
  readonly samples: readonly {
    readonly step: number
    readonly samples: readonly { readonly prompt: string; readonly text: string }[]
  }[]
  readonly settings: Readonly<Record<string, unknown>>
}

/** Charts of rewards: a title, and the curves with their names. */
const REWARD_CHARTS = [
  ['Reward', { reward: 'mean', deviation: 'deviation within a group' }],
  ['Length', { length: 'tokens of a text' }],
  [
    'Shares',
    {
      ...{ withoutSignal: 'groups without a signal', distinct: 'distinct texts' },
      ...{ cut: 'texts that were cut', clipped: 'clipped tokens' },
    },
  ],
  ['Divergence from the model before training', { kl: 'KL' }],
] as const

type NamesOf<T> = T extends unknown ? keyof T : never
type RewardValues = { readonly [K in NamesOf<(typeof REWARD_CHARTS)[number][1]>]?: number }

/** The most points of a curve: more would not be visible, and the file should stay small. */
const MAX_POINTS = 1500

export function runReport(runs: readonly RunFacts[], title: string, more: readonly Section[] = []): Report {
  const isOne = runs.length === 1
  const named = (run: RunFacts, word: string) => (isOne ? word : `${run.name}: ${word}`)
  const curve = (heading: string, series: Series[], isLogarithmic = false): Section[] =>
    series.some(({ x }) => x.length > 0)
      ? [{ kind: 'curves', title: heading, x: 'step', series: series.filter(({ x }) => x.length > 0), isLogarithmic }]
      : []
  const ofSteps = (value: (step: RunStep) => number | undefined, word: string) =>
    runs.map((run) => thinned(run, value, named(run, word)))
  const ofEvaluations = (value: (evaluation: RunEvaluation) => number | undefined, word: string) =>
    runs.map((run, i): Series => {
      const x = run.evaluations.map(({ step }) => step)
      const y = run.evaluations.map((evaluation) => value(evaluation) ?? null)
      return { name: named(run, word), x, y, color: runs.length + i }
    })
  const rewards = REWARD_CHARTS.flatMap(([heading, words]) =>
    curve(
      heading,
      Object.entries(words).flatMap(([key, word]) =>
        ofSteps((step) => step.rewards?.[key as keyof RewardValues], word),
      ),
    ),
  )
  const functions = [...new Set(runs.flatMap(({ steps }) => Object.keys(steps[0]?.rewards?.byFunction ?? {})))]
  const byFunction = curve(
    'Each reward',
    functions.flatMap((name) => ofSteps((step) => step.rewards?.byFunction[name], name)),
  )
  const metrics = [...new Set(runs.flatMap(({ evaluations }) => Object.keys(evaluations[0]?.metrics ?? {})))]
  return {
    title,
    command: 'report',
    sections: [
      ...rewards,
      ...(functions.length > 1 ? byFunction : []),
      ...curve('Loss', [
        ...ofSteps(({ loss }) => loss, 'training'),
        ...ofEvaluations(({ loss }) => loss, 'evaluation'),
      ]),
      ...metrics.flatMap((name) =>
        curve(
          name,
          ofEvaluations((evaluation) => evaluation.metrics[name], name),
        ),
      ),
      ...evaluationTable(runs, metrics),
      ...runs.flatMap((run) => sampleSection(run, isOne)),
      ...curve(
        'Learning rate',
        ofSteps(({ learningRate }) => learningRate, 'learning rate'),
      ),
      ...curve(
        'Norm of the gradients',
        ofSteps(({ gradientNorm }) => gradientNorm, 'norm'),
        true,
      ),
      ...more,
      ...settingsTable(runs),
    ],
  }
}

/** The evaluations before training, at the lowest loss, and at the end. */
function evaluationTable(runs: readonly RunFacts[], metrics: readonly string[]): Section[] {
  const rows = runs.flatMap(({ name, evaluations }) => {
    if (evaluations.length === 0) return []
    const best = evaluations.reduce((least, evaluation) => (evaluation.loss < least.loss ? evaluation : least))
    const shown = new Set([evaluations[0], best, evaluations[evaluations.length - 1]])
    return [...shown].map(({ step, loss, metrics: measured }): Cell[] => {
      const when = step === 0 ? 'before training' : `after step ${step}`
      const values = metrics.map((metric) => measured[metric] ?? null)
      return [name, step === best.step ? `${when} (lowest loss)` : when, loss, ...values]
    })
  })
  const columns = ['run', 'when', 'loss', ...metrics]
  return rows.length === 0 ? [] : [{ kind: 'table', title: 'Evaluations', columns, rows }]
}

/** Each prompt with its first answer, an answer from the middle of the run, and the last answer. */
function sampleSection({ name, samples }: RunFacts, isOne: boolean): Section[] {
  if (samples.length === 0) return []
  const chosen = [...new Set([samples[0], samples[samples.length >> 1], samples[samples.length - 1]])]
  const shown = samples[0].samples.map(
    ({ prompt }, i): Sample => ({
      prompt,
      answers: chosen.map(({ step, samples: texts }) => ({
        label: step === 0 ? 'before training' : `step ${step}`,
        text: texts[i]?.text ?? '',
      })),
    }),
  )
  return [{ kind: 'samples', title: isOne ? 'Answers' : `Answers of ${name}`, samples: shown }]
}

/** A single run shows all its settings. Several runs show the settings that differ. */
function settingsTable(runs: readonly RunFacts[]): Section[] {
  const all = runs.map(({ settings }) => flat(settings))
  const names = [...new Set(all.flatMap((settings) => [...settings.keys()]))]
  const rows = names.flatMap((name): Cell[][] => {
    const values = all.map((settings) => settings.get(name) ?? '–')
    const isSame = values.length > 1 && values.every((value) => value === values[0])
    return isSame ? [] : [[name, ...values]]
  })
  if (rows.length === 0) return []
  const title = runs.length > 1 ? 'Settings that differ' : 'Settings'
  return [{ kind: 'table', title, columns: ['setting', ...runs.map(({ name }) => name)], rows }]
}

function flat(settings: Readonly<Record<string, unknown>>, prefix = ''): Map<string, string> {
  const found = new Map<string, string>()
  for (const [key, value] of Object.entries(settings)) {
    if (value === null || value === undefined) continue
    if (typeof value === 'object' && !Array.isArray(value)) {
      for (const [name, text] of flat(value as Record<string, unknown>, `${prefix}${key}.`)) found.set(name, text)
    } else found.set(prefix + key, (typeof value === 'string' ? value : JSON.stringify(value)).slice(0, 300))
  }
  return found
}

/** Thins a curve to at most MAX_POINTS points, each the mean of its neighbors. Steps without a value have no point. */
function thinned({ steps }: RunFacts, value: (step: RunStep) => number | undefined, name: string): Series {
  const points = steps.flatMap((step) => {
    const y = value(step)
    return y === undefined ? [] : [{ x: step.step, y }]
  })
  const width = Math.ceil(points.length / MAX_POINTS)
  const [x, y]: [number[], (number | null)[]] = [[], []]
  for (let start = 0; start < points.length; start += width) {
    const group = points.slice(start, start + width)
    x.push(group[group.length - 1].x)
    y.push(group.reduce((sum, point) => sum + point.y, 0) / group.length)
  }
  return { name, x, y }
}
