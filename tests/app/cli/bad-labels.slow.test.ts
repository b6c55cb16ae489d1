// Records that a task cannot learn from. On the command line and in code, one message names the record before training.

import { existsSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { describe, expect, it } from 'vitest'
import { loadModel, train } from '../../../src/api/node.js'
import { inThread } from '../../run/models.js'
import { lowrankHere } from './in-process.js'
import { scratchFolder } from './lowrank.js'

const scratch = scratchFolder()
const ENCODER = 'tests/golden/text-classification/encoder'
const CLASSIFIER = 'tests/golden/text-classification/classifier'
const BART = 'tests/golden/graphs/bart'
const VIT = 'tests/golden/image-classification/vit'

interface Case {
  readonly rows: readonly object[]
  readonly evalRows?: readonly object[]
  /** The number of the row in the message, or undefined if the message is about all rows. */
  readonly row?: number
  readonly message: RegExp
  readonly task?: 'text-classification' | 'embedding' | 'image-classification' | 'causal-lm' | 'seq2seq'
  readonly model?: string
}

const good = [
  { text: 'the sea', label: 'ham' },
  { text: 'the sun', label: 'spam' },
]
const many = Array.from({ length: 10_002 }, (_, i) => ({ text: 'a', label: `label ${i}` }))

const CASES: Readonly<Record<string, Case>> = {
  'a missing label': { rows: [...good, { text: 'a king' }], row: 2, message: /not a text with a label.*got "text"/ },
  'a label that is null': { rows: [...good, { text: 'a', label: null }], row: 2, message: /not a text with a label/ },
  'labels and lists of labels': {
    rows: [...good, { text: 'a king', label: ['ham'] }],
    row: 2,
    message: /different kinds; expected one label.*got a list of labels/,
  },
  'numbers and lists of labels': {
    rows: [
      { text: 'a', label: 0.5 },
      { text: 'b', label: 0.7 },
      { text: 'c', label: ['x'] },
    ],
    row: 2,
    message: /different kinds; expected a number.*got a list of labels/,
  },
  'numbers and names': {
    rows: [
      { text: 'a', label: 0.5 },
      { text: 'b', label: 0.7 },
      { text: 'c', label: 'ham' },
    ],
    row: 2,
    message: /not a number to learn.*"ham"/,
  },
  'one label for all': { rows: [good[0], good[0]], message: /all records have the same label.*ham/ },
  'a label that only the evaluation data has': {
    rows: good,
    evalRows: [good[0], { text: 'rain', label: 'eggs' }],
    row: 1,
    message: /no record of the training data has it; expected ham, spam, got "eggs"/,
  },
  'more than 10,000 labels': { rows: many, row: 10_000, message: /at most 10000, got 10002/ },
  'an empty text': { rows: [...good, { text: ' ', label: 'ham' }], row: 2, message: /text is empty/ },
  'an empty second text': {
    rows: [...good, { text: 'a', textPair: '', label: 'ham' }],
    row: 2,
    message: /textPair is empty/,
  },
  'a pair without a partner': {
    rows: [{ text: 'a', textPair: 'b' }, { text: 'c' }],
    row: 1,
    message: /no pair of texts.*got "text"/,
    task: 'embedding',
  },
  'a picture that is not there': {
    rows: [{ image: 'nowhere.png', label: 'a' }],
    row: 0,
    message: /image, .*nowhere\.png/,
    task: 'image-classification',
    model: VIT,
  },
  'a task that the model cannot do': {
    rows: [{ image: 'nowhere.png', label: 'a' }],
    message: /This model can be trained for .*text-classification/,
    task: 'image-classification',
  },
  'no target': {
    rows: [{ text: 'a', target: 'b' }, { text: 'a' }],
    row: 1,
    message: /no target: a text that the model learns to write.*"target".*got "text" \(string\).*columns/s,
    task: 'seq2seq',
    model: BART,
  },
  'an empty target': {
    rows: [{ text: 'a', target: ' ' }],
    row: 0,
    message: /target: it is empty/,
    task: 'seq2seq',
    model: BART,
  },
  'two languages in one field': {
    rows: [{ text: 'a', translation: { en: 'a', de: 'b' } }],
    row: 0,
    message: /no target.*fields of their own/s,
    task: 'seq2seq',
    model: BART,
  },
  'two fields that could be the target': {
    rows: [{ text: 'a', summary: 'b', label: 'c' }],
    row: 0,
    message: /more than one field could be the text or the target.*columns/s,
    task: 'seq2seq',
    model: BART,
  },
  'a target that is too long for the model': {
    rows: [{ text: 'a', target: 'the sea '.repeat(60) }],
    row: 0,
    message: /target: longer than the model can write; expected at most 64 tokens, got \d+.*max-?[lL]ength:? 64/s,
    task: 'seq2seq',
    model: BART,
  },
  'texts to continue for an encoder-decoder': {
    rows: [{ text: 'a' }],
    message: /it is an encoder-decoder.*can be trained for seq2seq: set `?(--)?task/s,
    task: 'causal-lm',
    model: BART,
  },
  'a text to write for a model that continues texts': {
    rows: [{ text: 'a', target: 'b' }],
    message: /it is no encoder-decoder.*can be trained for causal-lm/s,
    task: 'seq2seq',
    model: 'models/union-3m',
  },
  'texts to continue for a classifier': {
    rows: [{ text: 'a' }],
    message: /does not continue texts.*can be trained for text-classification/s,
    task: 'causal-lm',
    model: CLASSIFIER,
  },
}

const lines = (name: string, rows: readonly object[]) => {
  const path = join(scratch, `${name}.jsonl`)
  writeFileSync(path, rows.map((row) => `${JSON.stringify(row)}\n`).join(''))
  return path
}

describe.each(Object.entries(CASES))(
  '%s',
  (name, { rows, evalRows, row, message, task = 'text-classification', model = ENCODER }) => {
    it('is refused in code', async () => {
      const stages: string[] = []
      const on = { stage: (stage: string) => void stages.push(stage) }
      const error = await train({ model, task, data: rows, evalData: evalRows, maxSteps: 1, on } as never).then(
        () => undefined,
        (refused: Error & { code?: string; hint?: string }) => refused,
      )
      expect(`${error?.message}${error?.hint === undefined ? '' : ` ${error.hint}`}`).toMatch(message)
      expect(error?.code).toMatch(/^(DATA|UNSUPPORTED|FILE)$/)
      if (row !== undefined) expect(error?.message).toContain(`${evalRows === undefined ? 'data' : 'evalData'}[${row}]`)
      expect(stages).not.toContain('prepare')
    })

    it('is refused on the command line', async () => {
      const out = join(scratch, `out ${name}`)
      const data = [
        '--data',
        lines(name, rows),
        ...(evalRows === undefined ? [] : ['--eval-data', lines(`${name} eval`, evalRows)]),
      ]
      const { code, stderr } = await lowrankHere(
        'train',
        '--model',
        model,
        '--task',
        task,
        ...data,
        '--max-steps',
        '1',
        '--out',
        out,
      )
      expect(stderr.match(/^error: /gm)).toHaveLength(1)
      expect(stderr).toMatch(message)
      expect(stderr).not.toMatch(/^\s+at /m)
      if (row !== undefined)
        expect(stderr).toContain(`${name}${evalRows === undefined ? '' : ' eval'}.jsonl, line ${row + 1}`)
      expect(code).toBe(1)
      expect(existsSync(out)).toBe(false)
    })
  },
)

it('tells of labels that one record alone has, with the record, and trains', async () => {
  const rows = [...good, { text: 'rain', label: 'ham' }]
  const warnings: string[] = []
  const on = { warning: (text: string) => void warnings.push(text) }
  const model = await loadModel(ENCODER, { runtime: inThread })
  await train({ model, task: 'text-classification', data: rows, maxSteps: 1, threads: 1, on })
  await model.close()
  expect(warnings.join()).toMatch(/one record alone has.*: "spam" \(data\[1\]\)$/)
})
