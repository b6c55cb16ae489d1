// Metrics of written texts and of labels, against rouge-score, sacrebleu and scikit-learn.

import { readFileSync } from 'node:fs'
import { expect, it } from 'vitest'
import { countTexts, textMetrics } from '../../../src/train/evaluate/answers.js'
import { bootstrap } from '../../../src/train/evaluate/bootstrap.js'
import { problemOf } from '../../../src/train/tasks/labels/label-problems.js'

const golden: {
  labels: { truth: number[]; logits: number[][]; metrics: Record<string, number> }[]
  texts: { text: string; wanted: string; rougeL: number; chrF: number }[]
  corpusChrF: number
} = JSON.parse(readFileSync('tests/golden/evaluate/golden.json', 'utf8'))

it('gives ROUGE-L of rouge-score, chrF of sacrebleu, and exact matches', () => {
  const counts = golden.texts.map(({ text, wanted }) => countTexts(text, wanted))
  for (const [i, { rougeL, chrF, text }] of golden.texts.entries()) {
    const own = textMetrics([counts[i]])
    expect(own.rougeL, text).toBeCloseTo(rougeL, 12)
    expect(own.chrF, text).toBeCloseTo(chrF, 10)
  }
  const all = textMetrics(counts)
  expect(all.chrF).toBeCloseTo(golden.corpusChrF, 10)
  expect(all.exactMatch).toBeCloseTo(1 / golden.texts.length, 12)
})

it('leaves out of chrF what Python’s split() takes for spaces', () => {
  const spaces = '\t\n\v\f\r\x1c\x1d\x1e\x1f \x85\xa0\u1680\u2000\u200a\u2028\u2029\u202f\u205f\u3000'
  expect(textMetrics([countTexts(`a${spaces}bc`, 'abc')]).chrF).toBe(100)
  for (const other of ['\ufeff', '\u200b', '\x1b']) {
    expect(textMetrics([countTexts(`a${other}bc`, 'abc')]).chrF).toBeLessThan(100)
  }
})

it('gives accuracy, F1 and area under the curve of scikit-learn', () => {
  for (const { truth, logits, metrics } of golden.labels) {
    const targets = truth.map((id) => `label ${id}`)
    const problem = problemOf(() => targets, [], {})
    const own = problem.metrics(
      targets,
      logits.map((row) => Float32Array.from(row)),
    )
    expect(Object.keys(own).sort()).toEqual(Object.keys(metrics).sort())
    for (const [name, value] of Object.entries(metrics)) expect(own[name], name).toBeCloseTo(value, 12)
  }
})

it('draws intervals that hold the mean as often as they say, and pairs the models', () => {
  const values = Array.from({ length: 200 }, (_, i) => Math.sin(1.7 * i))
  const shifted = values.map((value) => value + 0.25)
  const mean = (of: readonly number[]) => (records: ArrayLike<number>) => {
    const sum = Array.from(records).reduce((all, record) => all + of[record], 0)
    return { mean: sum / records.length }
  }
  const [first, second] = bootstrap([mean(values), mean(shifted)], 200, { resamples: 2000, seed: 1 })
  // The standard error of the mean of a sine is √(1/2/200) = 0.05, and 95 % lie within 1.96 of them.
  for (const edge of [first.metrics.mean.low!, first.metrics.mean.high!]) {
    expect(Math.abs(Math.abs(edge - first.metrics.mean.value) - 0.098)).toBeLessThan(0.01)
  }
  expect(first.differences).toBeNull()
  const { value, low, high } = second.differences!.mean
  for (const one of [value, low!, high!]) expect(one).toBeCloseTo(0.25, 10)
  expect(bootstrap([mean(values)], 200, { resamples: 50, seed: 1 })).toEqual(
    bootstrap([mean(values)], 200, { resamples: 50, seed: 1 }),
  )
  expect(bootstrap([mean([3])], 1, { resamples: 50, seed: 1 })[0].metrics.mean).toEqual({
    value: 3,
    low: null,
    high: null,
  })
})
