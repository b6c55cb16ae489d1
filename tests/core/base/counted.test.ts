// Counts in messages: no message says "1 records".

import { expect, it } from 'vitest'
import { counted, openFilesHint } from '../../../src/core/base/errors.js'
import { filesIn, textOf } from '../../structure/project.js'

it('counts in words', () => {
  expect([0, 1, 2, 1234].map((count) => counted(count, 'record'))).toEqual([
    '0 records',
    '1 record',
    '2 records',
    '1,234 records',
  ])
})

it('the command line counts by it alone', () => {
  const byHand =
    /\$\{(?!counted)[^{}]*\} (layers|tensors|records|steps|files|modules|rows|tokens|parameters|evaluations)\b(?!\/)/
  // After "N of M", and in a rate, the plural is right.
  const isCount = (line: string) =>
    byHand.test(line.replaceAll(/of \$\{[^{}]*\} \w+|a \w+ of|all \$\{[^{}]*\} \w+/g, ''))
  const lines = filesIn('src/app/cli', ['.ts']).flatMap((file) => textOf(file).split('\n').filter(isCount))
  expect(lines).toEqual([])
})

it('what an error got is counted, wherever it is thrown', () => {
  const byHand =
    /got: (.* : )?`\$\{(?!counted)[^{}]*\} (bytes|characters|tokens|records|pictures|layers|tensors|files)`/
  const lines = filesIn('src', ['.ts']).flatMap((file) =>
    textOf(file)
      .split('\n')
      .filter((line) => byHand.test(line)),
  )
  expect(lines).toEqual([])
})

it('an error about open files says how to raise the limit', () => {
  for (const message of [
    'open file "x" fail, errcode = 24 - Too many open files',
    'EMFILE: too many open files, open x',
  ])
    expect(openFilesHint(message)).toMatch('ulimit -n')
  expect(openFilesHint('no such file')).toBeUndefined()
})
