// lowrank evaluate: its output, its JSON document, and its page.

import { readFileSync, writeFileSync } from 'node:fs'
import { createServer } from 'node:http'
import type { AddressInfo } from 'node:net'
import { join } from 'node:path'
import { afterAll, beforeAll, describe, expect, it } from 'vitest'
import { lowrankHere } from './in-process.js'
import { root, scratchFolder } from './lowrank.js'

const scratch = scratchFolder()
const model = join(root, 'tests/golden/models/llama-optimum')
const adapter = join(root, 'tests/golden/peft/f32')

it('compares an adapter with its base, and mixes', async () => {
  const data = join(scratch, 'texts.jsonl')
  const texts = ['The sea was calm.', 'And the people <b>went</b> out.', 'A good day.']
  writeFileSync(data, texts.map((text) => JSON.stringify({ text })).join('\n'))
  const out = join(scratch, 'tiny')
  await lowrankHere(
    ...['train', '--model', model, '--data', data, '--out', out, '--max-steps', '2', '--rank', '2', '--threads', '1'],
  )
  const html = join(scratch, 'report.html')
  const args = ['evaluate', '--adapter', out, '--data', data, '--threads', '1', '--resamples', '20']
  const { code, stdout, stderr } = await lowrankHere(...args, '--html', html)
  expect([code, stderr]).toEqual([0, expect.stringContaining('3 records')])
  expect(stdout).toMatch(/^base\nmetric +value +95 %\nloss +\d/)
  expect(stdout).toContain('Records that differ most in loss')
  expect(readFileSync(html, 'utf8')).toContain('lowrank evaluate')
  expect(readFileSync(html, 'utf8')).not.toContain('<b>went')
  const again = await lowrankHere(...args, '--html', html)
  expect([again.code, again.stderr]).toEqual([1, expect.stringContaining('exists already')])
  const mix = await lowrankHere(...args, '--weight', '0.5', '--adapter', out, '--weight', '0.5', '--mix', '--json')
  const whole = await lowrankHere(...args, '--json')
  const losses = [mix, whole].map((outcome) => JSON.parse(outcome.stdout).models[1].metrics.loss.value)
  expect(losses[0]).toBeCloseTo(losses[1], 5)
  expect(JSON.parse(whole.stdout)).toMatchObject({ version: 1, task: 'causal-lm', records: 3, differBy: 'loss' })
})

const golden = join(root, 'tests/golden')
const goldenRows = (file: string): object[] => JSON.parse(readFileSync(join(golden, file), 'utf8')).rows

describe('the command on the model card gives its numbers', () => {
  /** Words beyond `--max-length` change labels and losses, so that numbers of cut records would differ. */
  const long = ['The sea was calm and the people went out to see it.', 'And the', 'They came to the city in the night.']
  it.each<[task: string, base: string, rows: object[], metric: string]>([
    ['causal-lm', join(root, 'models/union-3m'), long.map((text) => ({ text })), 'perplexity'],
    [
      'text-classification',
      join(golden, 'text-classification/encoder'),
      long.map((text, i) => ({ text, label: 'ab'[i % 2] })),
      'accuracy',
    ],
    [
      'token-classification',
      join(golden, 'token-classification/distilbert'),
      goldenRows('token-classification/distilbert/golden/golden.json'),
      'accuracy',
    ],
  ])('%s', async (task, base, rows, metric) => {
    const data = join(scratch, `${task}.jsonl`)
    const out = join(scratch, `${task} of a card`)
    writeFileSync(data, rows.map((row) => JSON.stringify(row)).join('\n'))
    const train = ['train', '--model', base, '--task', task, '--data', data, '--eval-data', data, '--out', out]
    const settings = ['--max-steps', '4', '--learning-rate', '0.02', '--max-length', '8', '--batch-size', '2']
    expect(await lowrankHere(...train, ...settings, '--threads', '1')).toMatchObject({ code: 0 })
    const card = readFileSync(join(out, 'README.md'), 'utf8')
    const [, line] = /^npx lowrank (evaluate .*)$/m.exec(card)!
    const words = [...line.matchAll(/'([^']*)'|(\S+)/g)].map(([, quoted, plain]) => quoted ?? plain)
    const { stdout, stderr } = await lowrankHere(...words, '--threads', '1', '--resamples', '1', '--json')
    expect(stderr).not.toMatch(/error/)
    const { metrics } = JSON.parse(stdout).models.at(-1)
    for (const name of ['loss', metric]) {
      const shown = Number(new RegExp(`^\\| ${name} \\| \\S+ \\| (\\S+) \\|$`, 'm').exec(card)![1])
      expect(Number(metrics[name].value.toPrecision(5)), name).toBe(shown)
    }
  })
})

it('gives the command of a run that held out records itself, which measures the same', async () => {
  const out = join(scratch, 'split')
  const data = join(root, 'models/data/scripture.eval.jsonl')
  const train = ['train', '--model', model, '--data', data, '--eval-split', '0.2', '--out', out]
  expect(await lowrankHere(...train, '--max-steps', '2', '--max-length', '16', '--threads', '1')).toMatchObject({
    code: 0,
  })
  const numbers = (folder: string) =>
    readFileSync(join(folder, 'README.md'), 'utf8').match(/^\| (loss|perplexity|accuracy) .*$/gm)
  const [line] = /^npx lowrank train --config .* --out again$/m.exec(readFileSync(join(out, 'README.md'), 'utf8'))!
  expect(line).toContain(join(out, 'run.json'))
  const again = join(scratch, 'again')
  expect(await lowrankHere('train', '--config', join(out, 'run.json'), '--out', again)).toMatchObject({ code: 0 })
  expect(numbers(again)).toEqual(numbers(out))
  expect(numbers(out)).toHaveLength(3)
}, 60_000)

it.each<[args: string[], code: number, message: RegExp]>([
  [['--data', 'x.jsonl'], 2, /--model .* is missing/],
  [['--model', model, '--adapter', adapter, '--data', join(root, 'missing.jsonl')], 1, /missing\.jsonl/],
  [['--model', model, '--data', join(root, 'models/data/scripture.eval.jsonl'), '--task', 'x'], 2, /--task/],
])('refuses %j', async (args, code, message) => {
  const outcome = await lowrankHere('evaluate', ...args)
  expect([outcome.code, outcome.stderr]).toEqual([code, expect.stringMatching(message)])
})

describe('--judge', () => {
  /** A judge that prefers the longer answer in either place, and says TIE for answers of the same length. */
  const server = createServer((request, response) => {
    let body = ''
    request.on('data', (piece) => {
      body += piece
    })
    request.on('end', () => {
      asked.push({ url: request.url, key: request.headers.authorization, ...JSON.parse(body) })
      if (asked.at(-1)!.model === 'first-only') return void response.end(reply('A'))
      if (asked.at(-1)!.model === 'missing') return void response.writeHead(404).end('no such model')
      const [, a, b] = /\[A\]\n(.*)\n\n\[B\]\n(.*)\n\nThe better/s.exec(asked.at(-1)!.messages[0].content)!
      response.end(reply(a.length === b.length ? 'TIE' : a.length > b.length ? 'A' : 'B'))
    })
  })
  const reply = (content: string) => JSON.stringify({ choices: [{ message: { role: 'assistant', content } }] })
  const asked: { url?: string; key?: string; model: string; messages: { content: string }[] }[] = []
  let url = ''
  beforeAll(async () => {
    await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve))
    url = `http://127.0.0.1:${(server.address() as AddressInfo).port}/v1/`
  })
  afterAll(() => void server.close())

  const pairs = join(scratch, 'pairs.jsonl')
  const args = [
    'evaluate',
    '--model',
    model,
    '--adapter',
    join(scratch, 'tiny'),
    '--data',
    pairs,
    '--threads',
    '1',
    '--resamples',
    '20',
  ]
  const run = (judgeModel: string) => {
    writeFileSync(
      pairs,
      ['calm', 'rough'].map((word) => JSON.stringify({ prompt: 'The sea was', completion: ` ${word}.` })).join('\n'),
    )
    return lowrankHere(...args, '--max-new-tokens', '4', '--judge', url, '--judge-model', judgeModel, '--json')
  }

  it('asks in both orders, and counts ties', async () => {
    const { code, stdout, stderr } = await run('longer')
    expect(code, stderr).toBe(0)
    const [base, own] = JSON.parse(stdout).models
    const { won, tied, lost } = own.judged
    expect(won + tied + lost).toBe(2)
    expect(own.metrics.judged.value).toBe((won + tied / 2) / 2)
    expect(own.differences.judged.value).toBe(own.metrics.judged.value - 0.5)
    expect(base.metrics.judged.value).toBe(0.5)
    expect(new Set(asked.map((one) => one.url))).toEqual(new Set(['/v1/chat/completions']))
    const orders = asked.map(({ messages }) => /\[A\].*/s.exec(messages[0].content)![0])
    expect(new Set(orders).size).toBeGreaterThan(asked.length > 0 ? 1 : -1)
    // A judge that always takes the first answer contradicts itself, so neither answer wins.
    const biased = JSON.parse((await run('first-only')).stdout).models[1]
    expect([biased.judged.tied, biased.metrics.judged.value]).toEqual([2, 0.5])
  })

  it('says what is wrong with the server', async () => {
    const { code, stderr } = await run('missing')
    expect([code, stderr]).toEqual([1, expect.stringMatching(/the judge does not answer.*404.*--judge-model/s)])
    const none = await lowrankHere(...args, '--judge', url)
    expect([none.code, none.stderr]).toEqual([2, expect.stringMatching(/--judge-model: missing/)])
    const bad = await lowrankHere(...args, '--judge', 'ftp://x', '--judge-model', 'x')
    expect([bad.code, bad.stderr]).toEqual([2, expect.stringMatching(/--judge: not an address/)])
  })
})

describe('train --gate', () => {
  const good = 'The sea was calm and the people went out.'
  const data = (name: string, text: string) => {
    writeFileSync(join(scratch, name), Array(4).fill(JSON.stringify({ text })).join('\n'))
    return join(scratch, name)
  }
  const own = join(scratch, 'gated')
  const weights = () => readFileSync(join(own, 'adapter_model.safetensors'), 'base64')
  const quick = ['--max-steps', '4', '--threads', '1', '--learning-rate']

  it('replaces an adapter only if it is not worse on held-out records', async () => {
    const start = ['--model', model, '--data', data('good.jsonl', good), '--out', own, '--rank', '2']
    await lowrankHere('train', ...start, ...quick, '5e-3')
    const before = weights()
    const other = data('other.jsonl', 'zzz qqq xxx zzz qqq xxx')
    const gate = ['train', '--adapter', own, '--gate', data('held.jsonl', good), '--json']
    const worse = await lowrankHere(...gate, '--data', other, ...quick, '5e-2')
    expect([worse.code, worse.stderr]).toEqual([0, expect.stringMatching(/stays as it was: the loss on 4 held-out/)])
    expect(JSON.parse(worse.stdout).gate).toMatchObject({ isReplaced: false, records: 4 })
    expect(weights()).toBe(before)
    const better = await lowrankHere(...gate, '--data', data('good.jsonl', good), ...quick, '2e-3')
    expect([better.code, better.stderr]).toEqual([0, expect.stringMatching(/was replaced: the loss on 4 held-out/)])
    expect(weights()).not.toBe(before)
  })

  it('judges vectors by the places of the right texts', async () => {
    const encoder = join(root, 'tests/golden/text-classification/encoder')
    const vectors = join(scratch, 'vectors')
    const pairs = join(root, 'models/data/pairs.jsonl')
    await lowrankHere(
      'train',
      '--task',
      'embedding',
      '--model',
      encoder,
      '--data',
      pairs,
      '--out',
      vectors,
      ...quick,
      '1e-3',
    )
    const again = ['train', '--adapter', vectors, '--model', encoder, '--task', 'embedding', '--data', pairs, '--json']
    const { code, stdout, stderr } = await lowrankHere(...again, '--gate', pairs, ...quick, '1e-9')
    expect([code, stderr]).toEqual([0, expect.stringMatching(/was replaced: the mrr on 6 held-out records/)])
    expect(JSON.parse(stdout).gate).toMatchObject({ isReplaced: true, difference: { value: 0, low: 0 } })
  })

  it('keeps the adapter if one record is all that there is to compare', async () => {
    const before = weights()
    const one = join(scratch, 'one.jsonl')
    writeFileSync(one, JSON.stringify({ text: good }))
    const more = ['--data', data('good.jsonl', good), ...quick, '2e-3']
    const { code, stderr } = await lowrankHere('train', '--adapter', own, '--gate', one, ...more)
    expect([code, stderr]).toEqual([0, expect.stringMatching(/stays as it was.*the whole interval must be/)])
    expect(weights()).toBe(before)
  })

  it.each<[args: string[], message: RegExp]>([
    [['--gate', 'x.jsonl', '--model', model, '--data', 'y.jsonl'], /--gate needs --adapter/],
    [['--gate', 'x.jsonl', '--adapter', own, '--data', 'y.jsonl', '--out', 'z'], /--gate and --out/],
  ])('refuses %j', async (args, message) => {
    expect(await lowrankHere('train', ...args)).toMatchObject({ code: 2, stderr: expect.stringMatching(message) })
  })
})

it('writes vectors of few bits by ranges that it makes of texts', async () => {
  const encoder = join(golden, 'text-classification/encoder')
  const [ranges, texts] = [join(scratch, 'ranges.json'), join(scratch, 'documents.jsonl')]
  const words = ['sea', 'sun', 'ship', 'whale', 'king']
  writeFileSync(texts, words.map((word) => JSON.stringify({ text: `the ${word}` })).join('\n'))
  const embed = (...args: string[]) => lowrankHere('embed', '--model', encoder, '--threads', '1', ...args)
  const none = await embed('--text', 'the sea', '--precision', 'int8')
  expect([none.code, none.stderr]).toEqual([2, expect.stringContaining('ranges')])
  const made = await embed('--data', texts, '--calibrate', ranges)
  expect([made.code, made.stdout, made.stderr]).toEqual([0, '', expect.stringContaining('ranges of 5 texts')])
  const [least, most] = JSON.parse(readFileSync(ranges, 'utf8')) as number[][]
  const whole = JSON.parse((await embed('--text', 'the sea')).stdout) as number[]
  const bytes = JSON.parse((await embed('--text', 'the sea', '--precision', 'uint8', '--ranges', ranges)).stdout)
  expect(bytes).toHaveLength(whole.length)
  for (const [i, byte] of (bytes as number[]).entries()) {
    expect(Math.abs(least[i] + (byte / 255) * (most[i] - least[i]) - whole[i])).toBeLessThan(0.02)
  }
  const bits = JSON.parse((await embed('--text', 'the sea', '--precision', 'ubinary')).stdout)
  expect(bits).toHaveLength(whole.length / 8)
  writeFileSync(ranges, 'no')
  const bad = await embed('--text', 'the sea', '--precision', 'uint8', '--ranges', ranges)
  expect([bad.code, bad.stderr]).toEqual([2, expect.stringContaining('--calibrate')])
})
