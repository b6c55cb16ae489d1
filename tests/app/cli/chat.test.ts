// The outputs of lowrank chat, init, and the commands that read records.

import { spawnSync } from 'node:child_process'
import { existsSync, readFileSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { PassThrough } from 'node:stream'
import { expect, it } from 'vitest'
import { type AdapterSession, DataError, type StreamOptions } from '../../../src/api/index.js'
import { talk } from '../../../src/app/cli/run/chat.js'
import { lowrankHere } from './in-process.js'
import { binary, root, scratchFolder } from './lowrank.js'

const scratch = scratchFolder()
const classifier = join(root, 'tests/golden/text-classification/classifier')
const encoder = join(root, 'tests/golden/text-classification/encoder')
const tagger = join(root, 'tests/golden/token-classification/distilbert')

/** Runs a command with a text as its standard input. */
function piped(args: readonly string[], text: string) {
  const {
    status: code,
    stdout,
    stderr,
  } = spawnSync(process.execPath, [binary, ...args], { input: text, encoding: 'utf8' })
  return { code, stdout, stderr }
}

/** A session that answers each question with “one two three”, and waits before each word. */
function echoing() {
  const asked: { messages: unknown; adapter: unknown }[] = []
  const adapters: string[] = []
  async function* stream(messages: unknown, { adapter, signal }: StreamOptions = {}) {
    asked.push({ messages: structuredClone(messages), adapter })
    for (const word of ['one ', 'two ', 'three']) {
      await new Promise((resolve) => setTimeout(resolve, 5))
      if (signal?.aborted) throw new DOMException('ended', 'AbortError')
      yield word
    }
  }
  const add = async (name: string) => {
    if (name === 'missing') throw new Error('missing: no such folder')
    adapters.push(name)
  }
  return { asked, session: { adapters, add, stream } as unknown as AdapterSession }
}

it('keeps the history, and changes, mixes and compares adapters', async () => {
  const { asked, session } = echoing()
  const input = new PassThrough()
  const output = new PassThrough()
  input.end(
    [
      'Hi',
      '/adapter a',
      'Again',
      '/mix a=0.5 b=2',
      'Mixed',
      '/reset',
      '/compare base b',
      'Both',
      '/adapter missing',
      'Still',
      '/exit',
      'Not read',
    ].join('\n'),
  )
  const signal = new AbortController().signal
  await talk(session, { options: {}, system: 'Be brief.', signal, input, output, isTerminal: false })
  expect(asked.map(({ adapter }) => adapter)).toEqual([null, 'a', { a: 0.5, b: 2 }, null, 'b', null, 'b'])
  const system = { role: 'system', content: 'Be brief.' }
  expect(asked[1].messages).toEqual([
    system,
    { role: 'user', content: 'Hi' },
    { role: 'assistant', content: 'one two three' },
    { role: 'user', content: 'Again' },
  ])
  expect(asked[4].messages).toEqual([system, { role: 'user', content: 'Both' }])
  expect(output.read().toString()).toBe('one two three\n'.repeat(7))
})

it('goes on where one of the models cannot answer', async () => {
  const { session } = echoing()
  const refusing: AdapterSession['stream'] = (messages, options) => {
    if (options?.adapter === null) throw new DataError({ where: 'base', what: 'no chat template' })
    return session.stream(messages, options)
  }
  const [input, output] = [new PassThrough(), new PassThrough()]
  input.end('/compare base b\nBoth\n')
  const setup = { options: {}, signal: new AbortController().signal, input, output, isTerminal: false }
  await talk({ ...session, stream: refusing }, setup)
  expect(output.read().toString()).toBe('\none two three\n')
})

it('ends an answer with Ctrl-C, and at an empty line the chat', async () => {
  const { asked, session } = echoing()
  const [input, output] = [new PassThrough(), new PassThrough()]
  const signal = new AbortController().signal
  const done = talk(session, { options: {}, signal, input, output, isTerminal: true })
  let seen = ''
  let wasEnded = false
  output.on('data', (piece) => {
    seen += piece
    if (wasEnded || !seen.includes('two ')) return
    wasEnded = true
    input.write('\x03')
    setTimeout(() => input.write('More\r'), 30)
    setTimeout(() => input.write('\x03'), 120)
  })
  input.write('Hi\r')
  await done
  expect(asked[1].messages).toEqual([
    { role: 'user', content: 'Hi' },
    { role: 'assistant', content: 'one two ' },
    { role: 'user', content: 'More' },
  ])
})

it('answers lines of standard input with a model', async () => {
  const model = join(root, 'models/union-3m')
  const template = join(root, 'models/data/chat.jinja')
  const args = ['chat', '--model', model, '--chat-template', template, '--max-new-tokens', '3', '--temperature', '0']
  const { code, stdout, stderr } = piped(args, 'Who is the captain?\nAnd then?\n')
  expect([code, stdout.trimEnd().split('\n').length > 0], stderr).toEqual([0, true])
  const none = await lowrankHere('chat', '--model', model)
  expect([none.code, none.stderr]).toEqual([1, expect.stringMatching(/no chat template/)])
})

it('writes a sample that can be trained on, once', async () => {
  const folder = join(scratch, 'first')
  const { code, stderr } = await lowrankHere('init', folder)
  expect([code, stderr]).toEqual([0, expect.stringContaining('npx lowrank train')])
  const checked = JSON.parse((await lowrankHere('data', join(folder, 'chats.jsonl'), '--json')).stdout)
  expect(checked).toMatchObject({ task: 'causal-lm', records: 8, invalid: [] })
  expect(await lowrankHere('init', folder)).toMatchObject({ code: 1, stderr: expect.stringMatching(/exists already/) })
})

it('classifies and embeds the records of a file, as texts one by one', async () => {
  const texts = ['a good day', 'a grim, "cold" night']
  const data = join(scratch, 'texts.csv')
  writeFileSync(data, `id,review\n1,${texts[0]}\n2,"a grim, ""cold"" night"\n`)
  const { stdout: one } = await lowrankHere('classify', classifier, '--text', texts[0], '--text', texts[1], '--json')
  const expected = JSON.parse(one).results
  const args = ['--data', data, '--columns', 'text=review']
  const rows = (await lowrankHere('classify', classifier, ...args)).stdout.trim().split('\n')
  expect(rows.map((row) => JSON.parse(row))).toEqual(
    texts.map((review, i) => ({ id: `${i + 1}`, review, label: expected[i].label, score: expected[i].score })),
  )
  const csv = (await lowrankHere('classify', classifier, ...args, '--format', 'csv')).stdout.split('\n')
  expect(csv.slice(0, 3)).toEqual([
    'id,review,label,score',
    `1,a good day,${expected[0].label},${expected[0].score}`,
    `2,"a grim, ""cold"" night",${expected[1].label},${expected[1].score}`,
  ])
  const vectors = (await lowrankHere('embed', encoder, '--text', texts[0])).stdout
  const embedded = (await lowrankHere('embed', encoder, ...args)).stdout.split('\n')
  expect(JSON.parse(embedded[0])).toEqual({ id: '1', review: texts[0], vector: JSON.parse(vectors) })
})

it.each([
  [
    'classify',
    classifier,
    '{"text": "a good day", "score": 7, "label": "gold"}',
    ['predicted_label', 'predicted_score'],
  ],
  ['classify', classifier, '{"text": "a", "label": 1, "predicted_label": 2}', ['predicted_predicted_label', 'score']],
  ['classify', tagger, '{"text": "a", "entities": [], "words": ["a"]}', ['predicted_entities', 'predicted_words']],
  ['embed', encoder, '{"text": "a", "vector": [1]}', ['predicted_vector']],
])('%s keeps the fields of a record beside the new ones', async (command, model, record, added) => {
  const data = join(scratch, 'named-alike.jsonl')
  writeFileSync(data, record)
  const { stdout, stderr } = await lowrankHere(command, model, '--data', data)
  const written = JSON.parse(stdout)
  expect(written).toMatchObject(JSON.parse(record))
  expect(Object.keys(written)).toEqual(expect.arrayContaining(added))
  expect(stderr).toContain(`so the new one is "${added[0]}"`)
})

it('keeps the fields of later records in their columns, or says what has none', async () => {
  const data = join(scratch, 'uneven.jsonl')
  const classified = async (rows: object[], ...args: string[]) => {
    writeFileSync(data, rows.map((row) => JSON.stringify(row)).join('\n'))
    return lowrankHere('classify', classifier, '--data', data, ...args)
  }
  const first = { text: 'a good day', note: 'x' }
  const { stdout } = await classified([first, { note: 'y', text: 'a' }, { text: 'a' }], '--format', 'csv')
  expect(stdout.split('\n').map((line) => line.split(',').slice(0, 2).join())).toEqual([
    ...['text,note', 'a good day,x', 'a,y', 'a,'],
    '',
  ])
  const noColumn = await classified([first, { text: 'a', more: 1 }], '--format', 'csv')
  expect([noColumn.code, noColumn.stderr]).toEqual([1, expect.stringMatching(/line 2: .*"more".*--format jsonl/)])
  const mixed = await classified([first, { text: 'a', label: 1 }])
  expect([mixed.code, mixed.stderr]).toEqual([
    1,
    expect.stringMatching(/line 2: the first record has no field "label"/),
  ])
})

it('tags lines of standard input', async () => {
  const { code, stdout, stderr } = piped(
    ['classify', tagger, '--data', '-'],
    'Captain Ahab saw Nantucket.\n\n{"text": "No one.", "id": 7}\n',
  )
  expect(code, stderr).toBe(0)
  const rows = stdout
    .trim()
    .split('\n')
    .map((line) => JSON.parse(line))
  expect(rows).toMatchObject([{ text: 'Captain Ahab saw Nantucket.', words: expect.any(Array) }, { id: 7 }])
})

it('merges into the base that the adapter names', async () => {
  const model = join(root, 'tests/golden/models/llama-optimum')
  const data = join(scratch, 'merge.jsonl')
  writeFileSync(data, '{"text": "The sea was calm."}')
  const adapter = join(scratch, 'named')
  await lowrankHere(
    'train',
    model,
    '--data',
    data,
    '--out',
    adapter,
    '--max-steps',
    '1',
    '--rank',
    '2',
    '--threads',
    '1',
  )
  const { code, stderr } = await lowrankHere('merge', '--adapter', adapter, '--out', join(scratch, 'merged'))
  expect([code, stderr]).toEqual([0, expect.stringContaining('The base is')])
  expect(existsSync(join(scratch, 'merged/config.json'))).toBe(true)
  expect(readFileSync(join(adapter, 'adapter_config.json'), 'utf8')).toContain('llama-optimum')
})

it.each<[args: string[], code: number, message: RegExp]>([
  [['classify', classifier, '--data', 'no.jsonl'], 1, /no\.jsonl/],
  [['classify', classifier, '--data', 'a', '--text', 'b'], 2, /--data and --text/],
  [['embed', encoder, '--data', 'a', '--json'], 2, /--format jsonl/],
  [['embed', encoder], 2, /--text TEXT is missing, or --data/],
  [['embed', encoder, '--data', join(root, 'models/data/chats.jsonl')], 1, /no text.*--columns text=/],
  [['init', root, 'x'], 2, /x/],
  [['chat'], 2, /--model .* is missing/],
])('refuses %j', async (args, code, message) => {
  const outcome = await lowrankHere(...args)
  expect([outcome.code, outcome.stderr]).toEqual([code, expect.stringMatching(message)])
})
