// Records of every form on the command line: previews, and runs on them.

import { readFileSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { describe, expect, it } from 'vitest'
import { goldenPath } from '../../golden.js'
import { lowrankHere } from './in-process.js'
import { MODEL, root, scratchFolder } from './lowrank.js'

const scratch = scratchFolder()
const chats = join(root, 'models', 'data', 'chats.jsonl')
const template = join(root, 'models', 'data', 'chat.jinja')
const file = (name: string, content: string) => {
  writeFileSync(join(scratch, name), content)
  return join(scratch, name)
}
const preview = (...args: string[]) => lowrankHere('data', '--model', MODEL, '--preview', '1', ...args)

interface Token {
  text: string
  counts: boolean
}
const textOf = (tokens: Token[], isCounted: boolean) =>
  tokens.flatMap(({ text, counts }) => (counts === isCounted ? [text] : [])).join('')

describe('lowrank data --preview', () => {
  it('shows tokens and which of them count', async () => {
    const { code, stdout, stderr } = await preview('--data', chats, '--chat-template', template)
    expect(code, stderr).toBe(0)
    expect(stdout).toMatch(/^.*chats\.jsonl, line 1: \d+ tokens, \d+ of them count\n<│/m)
    expect(stdout.replaceAll('│', '')).toContain('<|assistant|>⏎\n⟦Ahab is the captain.<|eos|>⏎⟧')
  })

  it.each([
    ['qa.csv', 'question,answer\nWho?,Ahab.\n', []],
    ['mapped.tsv', 'q\ta\nWho?\tAhab.\n', ['--columns', 'question=q,answer=a']],
    ['list.json', '[{"instruction": "Who?", "input": "", "output": "Ahab."}]', []],
    [
      'sharegpt.jsonl',
      '{"conversations": [{"from": "human", "value": "Who?"}, {"from": "gpt", "value": "Ahab."}]}',
      [],
    ],
    [
      'trl.jsonl',
      '{"prompt": [{"role": "user", "content": "Who?"}], "completion": [{"role": "assistant", "content": "Ahab."}]}',
      [],
    ],
  ])('reads %s', async (name, content, more) => {
    const args = ['--data', file(name, content), '--chat-template', template, ...more, '--json']
    const { code, stdout, stderr } = await preview(...args)
    expect(code, stderr).toBe(0)
    const [{ where, tokens }] = JSON.parse(stdout).examples
    expect(where).toContain(name)
    expect([textOf(tokens, false), textOf(tokens, true)]).toEqual([
      '<|user|>\nWho?<|eos|>\n<|assistant|>\n',
      'Ahab.<|eos|>\n',
    ])
  })

  it('shows the label of a text', async () => {
    const model = join(root, 'tests/golden/text-classification/encoder')
    const rows = file('labels.jsonl', '{"text": "the sea was calm", "label": "calm"}\n{"text": "no", "label": "sad"}')
    const args = ['data', rows, '--model', model, '--preview', '2']
    const { code, stdout, stderr } = await lowrankHere(...args)
    expect(code, stderr).toBe(0)
    expect(stdout).toContain('line 1: 9 tokens, label: calm')
  })

  it('hands variables to the template', async () => {
    const own = file('own.jinja', '{{ tone }}: {% generation %}{{ messages[-1].content }}{% endgeneration %}')
    const args = ['--chat-template', own, '--chat-template-args', '{"tone": "kind"}', '--json']
    const { stdout } = await preview('--data', chats, ...args)
    const [{ tokens }] = JSON.parse(stdout).examples
    // The space is a part of the first word's token.
    expect([textOf(tokens, false), textOf(tokens, true)]).toEqual(['kind:', ' Ahab is the captain.'])
  })

  it.each([
    ['a missing template', ['--data', chats], 1, /the model has no chat template.*--chat-template/],
    [
      'a template that is not there',
      ['--data', chats, '--chat-template', 'none.jinja'],
      1,
      /none\.jinja: no such file/,
    ],
    [
      'arguments that are no JSON',
      ['--data', chats, '--chat-template-args', 'x'],
      2,
      /--chat-template-args takes names with values/,
    ],
    [
      'columns without names',
      ['--data', chats, '--columns', 'prompt'],
      2,
      /--columns takes names with values, such as/,
    ],
    ['a column that is not there', ['--data', chats, '--columns', 'text=txt'], 1, /line 1: no field "txt"/],
    ['Parquet that is none', ['--data', file('x.parquet', 'abc')], 1, /x\.parquet: cannot be read as Parquet/],
    ['broken quotes', ['--data', file('x.csv', 'text\n"open\n')], 1, /x\.csv, line 2: a quote that never closes/],
    [
      'an unknown role',
      ['--chat-template', template, '--data', file('roles.jsonl', '{"messages": [{"role": "bot", "content": "a"}]}')],
      1,
      /line 1, message 1: an unknown role/,
    ],
    ['a folder of a model', ['--data', MODEL], 1, /union-3m: this folder holds a model/],
  ])('refuses %s', async (_, args, expected, message) => {
    const { code, stdout, stderr } = await preview(...args)
    expect([code, stdout + stderr]).toEqual([expected, expect.stringMatching(message)])
  })
})

describe('lowrank train', () => {
  const quick = ['--model', MODEL, '--max-steps', '2', '--batch-size', '2', '--max-length', '128', '--json']

  it('trains on chats, and evaluates on a part of them', async () => {
    const out = join(scratch, 'chats')
    const args = ['--data', chats, '--chat-template', template, '--eval-split', '0.25', '--out', out]
    const { code, stdout, stderr } = await lowrankHere('train', ...quick, ...args)
    expect(code, stderr).toBe(0)
    const report = JSON.parse(stdout)
    expect(report).toMatchObject({ steps: 2, skippedRecords: 0, truncatedRecords: 0 })
    expect(report.evalLoss.after).toBeLessThan(report.evalLoss.before)
    const again = await lowrankHere('train', ...quick, ...args, '--overwrite')
    expect(JSON.parse(again.stdout).trainLoss).toEqual(report.trainLoss)
  })

  it('trains on several files, and counts what it leaves out', async () => {
    const more = file('more.jsonl', '{"text": ""}\n{"text": "Call me Ishmael."}\n')
    const out = join(scratch, 'several')
    const data = ['--data', goldenPath('data', 'zstd.parquet'), '--data', more]
    const { code, stdout, stderr } = await lowrankHere('train', ...quick, ...data, '--out', out)
    expect(code, stderr).toBe(0)
    expect(JSON.parse(stdout).skippedRecords).toBe(1)
    expect(stderr).toContain('1 of 8 records left out')
    expect(readFileSync(join(out, 'metrics.jsonl'), 'utf8').trim().split('\n')).toHaveLength(2)
  })

  it('needs a folder to train into', async () => {
    const { code, stderr } = await lowrankHere('train', '--model', MODEL, '--data', chats)
    expect([code, stderr]).toEqual([2, expect.stringContaining('--out DIR is missing')])
  })
})
