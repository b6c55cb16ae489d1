// lowrank data: its report about files of records, its JSON document and exit codes; and runs that skip bad records.

import { writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { Readable } from 'node:stream'
import { expect, it } from 'vitest'
import { lowrankHere } from './in-process.js'
import { root, scratchFolder } from './lowrank.js'

const scratch = scratchFolder()
const model = join(root, 'tests/golden/models/llama-optimum')
const file = (name: string, lines: readonly unknown[]) => {
  const path = join(scratch, name)
  writeFileSync(path, lines.map((line) => (typeof line === 'string' ? line : JSON.stringify(line))).join('\n'))
  return path
}

const LABELED = [
  ...[1, 2, 3].map((i) => ({ text: `The sea was calm ${i}.`, label: 'calm' })),
  { text: 'A storm.', label: 'rough' },
  { text: 'A storm.', label: 'rough' },
]

it('tells the task, labels, duplicates, and evaluation records that are trained on', async () => {
  const evalData = file('eval.jsonl', [LABELED[3], { text: 'New.', label: 'calm' }])
  const args = ['data', file('labels.jsonl', LABELED), '--eval-data', evalData]
  const { code, stdout, stderr } = await lowrankHere(...args)
  expect([code, stdout]).toEqual([0, expect.stringContaining('5 records, and 2 to evaluate. They fit the task text-c')])
  expect(stdout).toMatch(/calm +3 +60\.0 %\nrough +2 +40\.0 %/)
  expect(stderr).toContain('1 of 5 records are there twice')
  expect(stderr).toContain('1 evaluation records are in the training data too: ')
  const document = JSON.parse((await lowrankHere(...args, '--json')).stdout)
  expect(document).toMatchObject({ task: 'text-classification', labels: { calm: 3, rough: 2 }, duplicates: 1 })
  expect(document.evalInTraining).toEqual([expect.stringContaining('eval.jsonl, line 1')])
  expect(document.lengths).toMatchObject({ unit: 'characters', least: 13, most: 23, median: 23, total: 95 })
})

it('names evaluation records in the training data first, and leads text,category to labels', async () => {
  const table = file('table.csv', ['text,category', 'a,x', 'a,x', 'b,"y'])
  const { stderr } = await lowrankHere('data', table, '--eval-data', file('eval.csv', ['text,category', 'a,x']))
  const lines = stderr.split('\n')
  expect(lines[0]).toContain('1 evaluation records are in the training data too')
  expect(stderr).toContain('to learn labels, give --columns label=category')
})

it('reads standard input', async () => {
  const stdin = Object.getOwnPropertyDescriptor(process, 'stdin')!
  const value = Readable.from([Buffer.from('{"text": "a"}\n{"te'), Buffer.from('xt": "b"}\n{')])
  Object.defineProperty(process, 'stdin', { value, configurable: true })
  const { code, stdout, stderr } = await lowrankHere('data', '-').finally(() => {
    Object.defineProperty(process, 'stdin', stdin)
  })
  expect([code, stdout]).toEqual([1, expect.stringContaining('2 records. They fit the task causal-lm.')])
  expect(stderr).toContain('standard input, line 3')
})

it('says that no record fits, and that there are none', async () => {
  const other = await lowrankHere('data', file('other.jsonl', [{ txt: 1 }]))
  expect([other.code, other.stdout]).toEqual([1, '0 records. None fits the task causal-lm.\n'])
  const empty = await lowrankHere('data', file('empty.jsonl', []))
  expect([empty.code, empty.stderr]).toEqual([1, expect.stringContaining('There are no records in these files')])
})

it('says that nothing can be learned', async () => {
  const question = { messages: [{ role: 'user', content: 'And?' }] }
  const none = await lowrankHere('data', file('questions.jsonl', [question, question]))
  expect([none.code, none.stderr]).toEqual([1, expect.stringContaining('no record has a target to learn from')])
  const answer = { messages: [...question.messages, { role: 'assistant', content: 'So.' }] }
  const some = await lowrankHere('data', file('chats.jsonl', [question, answer]))
  expect([some.code, some.stderr]).toEqual([0, expect.stringContaining('1 of 2 records left out')])
})

it('lists every bad record, and shows the first 20', async () => {
  const bad = Array.from({ length: 23 }, (_, i) => (i % 2 === 0 ? '{"text": ' : { txt: i }))
  const path = file('bad.jsonl', [{ text: 'Good.' }, ...bad, { text: 'Good too.' }])
  const { code, stdout, stderr } = await lowrankHere('data', path)
  expect([code, stdout]).toEqual([1, expect.stringContaining('2 records. They fit the task causal-lm.')])
  expect(stderr.match(/problem: .*bad\.jsonl, line \d+/g)).toHaveLength(20)
  expect(stderr).toContain('… and 3 more')
  const { invalid } = JSON.parse((await lowrankHere('data', path, '--json')).stdout)
  expect(invalid.map(({ where }: { where: string }) => where.replace(/.*, /, ''))).toEqual(
    bad.map((_, i) => `line ${i + 2}`),
  )
})

it.each([
  ['bad.csv', 'text\nok\na,b\n"open', ['line 3: more fields', 'line 4: a quote that never']],
  ['bad.json', '[{"text": "ok"}, {"x": 1}, 5]', ['record 2', 'record 3']],
  ['bad-columns.jsonl', '{"t": "ok"}\n{"x": 1}', ['line 2: no field "t"']],
])('goes on after bad records of %s', async (name, content, messages) => {
  const columns = name.includes('columns') ? ['--columns', 'text=t'] : []
  const { stdout, stderr } = await lowrankHere('data', file(name, [content]), ...columns)
  expect(stdout).toContain('1 record.')
  for (const message of messages) expect(stderr).toContain(message)
})

it('trains without up to so many bad records, and says which task it chose', async () => {
  const data = file('some-bad.jsonl', [{ text: 'A calm sea.', tone: 1 }, '{', { text: 'A storm.' }, { x: 1 }])
  const run = (out: string, ...more: string[]) => {
    const args = ['--data', data, '--out', join(scratch, out), '--max-steps', '1', '--rank', '2', '--threads', '1']
    return lowrankHere('train', '--model', model, ...args, ...more)
  }
  expect(await run('none')).toMatchObject({ code: 1, stderr: expect.stringMatching(/line 2: not valid JSON/) })
  const tooMany = await run('one', '--skip-invalid', '1')
  expect([tooMany.code, tooMany.stderr]).toEqual([1, expect.stringMatching(/more than 1 record cannot be used/)])
  const { code, stderr } = await run('two', '--skip-invalid', '2')
  expect([code, stderr]).toEqual([0, expect.stringContaining('Task: causal-lm')])
  expect(stderr).toMatch(/2 of \d records left out, because they are not valid: .*line 2/)
})

it('warns where training on text alone drops a label', async () => {
  const data = file('dropped.jsonl', LABELED)
  const { stderr } = await lowrankHere('data', data, '--task', 'causal-lm', '--model', model)
  expect(stderr).toContain('5 of 5 records have a field "label", which the task causal-lm does not read')
})

it('misses the chat template before weights are loaded', async () => {
  const { rmSync, cpSync } = await import('node:fs')
  const bare = join(scratch, 'bare')
  cpSync(model, bare, { recursive: true, dereference: true })
  rmSync(join(bare, 'onnx'), { recursive: true, force: true })
  const data = file('chats.jsonl', [
    {
      messages: [
        { role: 'user', content: 'a' },
        { role: 'assistant', content: 'b' },
      ],
    },
  ])
  const { code, stderr } = await lowrankHere('train', '--model', bare, '--data', data, '--out', join(scratch, 'no'))
  expect([code, stderr]).toEqual([1, expect.stringMatching(/the model has no chat template/)])
})

it.each<[args: string[], code: number, message: RegExp]>([
  [[], 2, /--data FILE\|DIR is missing/],
  [[join(root, 'package.json'), '--preview', '1'], 2, /--preview: needs a/],
  [['no-such.jsonl'], 1, /no-such\.jsonl/],
  [[join(root, 'package.json'), '--task', 'dop'], 2, /--task: unknown; expected .*\bdpo\b.*Did you mean dpo\?/],
])('refuses %j', async (args, code, message) => {
  const outcome = await lowrankHere('data', ...args)
  expect([outcome.code, outcome.stderr]).toEqual([code, expect.stringMatching(message)])
})

it('takes chats with pictures from a file, in the check and in training', async () => {
  const folder = join(root, 'tests/golden/graphs/idefics3')
  const content = [{ type: 'image' }, { type: 'text', text: 'Is it warm' }]
  const row = (answer: string, values: number[]) => ({
    messages: [
      { role: 'user', content },
      { role: 'assistant', content: answer },
    ],
    images: [{ data: Array.from({ length: 16 * 16 * 3 }, (_, i) => values[i % 3]), width: 16, height: 16 }],
  })
  const rows = [row('yes', [255, 0, 0]), row('no', [0, 0, 255])]
  const path = file('pictures.jsonl', [...rows, { ...rows[0], images: [] }])
  const checked = await lowrankHere('data', path, '--model', folder, '--json')
  expect([checked.code, JSON.parse(checked.stdout)]).toEqual([
    1,
    expect.objectContaining({ records: 2, invalid: [expect.objectContaining({ where: `${path}, line 3` })] }),
  ])
  const out = join(scratch, 'pictures')
  const options = ['--skip-invalid', '1', '--max-steps', '2', '--eval-data', file('two.jsonl', rows), '--out', out]
  const trained = await lowrankHere('train', '--model', folder, '--data', path, ...options, '--json')
  expect([trained.code, trained.stderr]).toEqual([0, expect.stringContaining('trained in the language model alone')])
  const { evalLoss } = JSON.parse(trained.stdout)
  expect(evalLoss.after).toBeLessThan(evalLoss.before)
})
