// OpenAI's graders: similarities against the Python packages that they name, formulas, places, and models that judge.

import { readFileSync } from 'node:fs'
import { createServer, type RequestListener } from 'node:http'
import type { AddressInfo } from 'node:net'
import { describe, expect, it, onTestFinished } from 'vitest'
import {
  ConfigError,
  DataError,
  type Judge,
  NumericError,
  RuntimeError,
  UnsupportedError,
} from '../../../src/api/node.js'
import { parseFormula } from '../../../src/train/loop/graders/formula.js'
import { openGrader, rewardOf } from '../../../src/train/loop/graders/grader.js'
import type { GraderModels } from '../../../src/train/loop/graders/judges.js'

const METRICS = [
  'fuzzy_match',
  'bleu',
  'gleu',
  'rouge_1',
  'rouge_2',
  'rouge_3',
  'rouge_4',
  'rouge_5',
  'rouge_l',
] as const
type Row = { text: string; wanted: string } & Record<(typeof METRICS)[number], number>
const { rows }: { rows: Row[] } = JSON.parse(readFileSync('tests/golden/graders/golden.json', 'utf8'))

const texts = { input: '{{sample.output_text}}', reference: '{{item.answer}}' }
const check = { type: 'string_check', name: 'exact', operation: 'eq', ...texts }
const similar = { type: 'text_similarity', name: 'near', evaluation_metric: 'bleu', ...texts }
const input = [{ role: 'user', content: 'Rate {{sample.output_text}} against {{item.answer}}' }]
const score = { type: 'score_model', name: 'rated', model: 'gpt', input }
const label = {
  type: 'label_model',
  name: 'tone',
  model: 'gpt',
  input,
  labels: ['kind', 'rude'],
  passing_labels: ['kind'],
}
const multi = {
  type: 'multi',
  name: 'both',
  graders: { exact: check, near: similar },
  calculate_output: 'exact + near',
}

const grade = (grader: object, text: string, item: Record<string, unknown> = {}, models: GraderModels = {}) =>
  openGrader(grader, models)({ item, text })

it.each(METRICS)('%s is that of its Python package', async (metric) => {
  expect(rows.length).toBeGreaterThan(70)
  for (const row of rows) {
    const found = await grade({ ...similar, evaluation_metric: metric }, row.text, { answer: row.wanted })
    expect(Math.abs(found! - row[metric]), `${JSON.stringify(row.text)}: ${found}, ${row[metric]}`).toBeLessThan(1e-6)
  }
})

it.each([
  ['eq', 'Sea', 'Sea', 1],
  ['eq', 'sea', 'Sea', 0],
  ['ne', 'sea', 'Sea', 1],
  ['like', 'The Sea.', 'Sea', 1],
  ['like', 'The sea.', 'Sea', 0],
  ['ilike', 'The sea.', 'Sea', 1],
])('string_check %s of %s and %s', async (operation, text, answer, wanted) => {
  expect(await grade({ ...check, operation }, text, { answer })).toBe(wanted)
})

describe('places', () => {
  const read = (input: string, text: string, item: Record<string, unknown>, reference: string) =>
    grade({ ...check, input, reference }, text, item)

  it.each([
    ['{{ item.a.b[1] }}!', '', { a: { b: [1, 2] } }, '2!'],
    ['{{sample.output_json.city.0}}', '{"city":["Rome"]}', {}, 'Rome'],
    ['{{sample.output_json.list}}', '{"list":[1,null]}', {}, '[1,null]'],
    ['{{item.x}}', '', { x: '{{sample.output_text}}' }, 'no'],
    ['a {b} {{item.x}} }}', '', { x: true }, 'a {b} true }}'],
    ['{{item.x}} {{item.y}}', '', { x: 1n, y: { z: 2n } }, '1 {"z":"2"}'],
  ] as [string, string, Record<string, unknown>, string][])('%s', async (place, text, item, wanted) => {
    const isFilled = wanted === 'no' ? 0 : 1
    expect(await read(place, text, item, wanted)).toBe(isFilled)
  })

  it('give the lowest grade to a text that is not the JSON that is asked for', async () => {
    const place = { ...check, operation: 'ne', input: '{{sample.output_json.city}}', reference: 'x' }
    for (const text of ['Rome', '{"town":1}', '{"city":', '[]']) expect(await grade(place, text), text).toBe(0)
    const rated = { ...score, range: [-2, 2], input: [{ role: 'user', content: '{{sample.output_json.city}}' }] }
    expect(await grade(rated, 'Rome', {}, { gpt: () => '2' })).toBe(-2)
  })

  it('name the grader and the field if the record has no such field', async () => {
    for (const name of ['answer', 'constructor', '__proto__']) {
      const caught = await read(`{{item.${name}}}`, 'x', { question: 'y' }, 'z').catch((error) => error)
      expect(caught).toBeInstanceOf(DataError)
      expect(caught.message).toMatch(new RegExp(`grader exact, input: the record has no {{item.${name}}}.*"question"`))
    }
  })
})

describe('formulas', () => {
  const values: Record<string, number> = { a: 2, b_1: 0.5 }
  const compute = (text: string) => parseFormula(text, Object.keys(values), 'here')((name) => values[name])

  it.each([
    ['1 + 2 * 3 - 4 / 8', 6.5],
    ['(1 + 2) * 3', 9],
    ['10 - 4 - 3', 3],
    ['2 ^ 3 ^ 2', 512],
    ['-2 ^ 2', -4],
    ['2 ^ -1', 0.5],
    ['-(a) + --b_1', -1.5],
    ['1.5e2 * .5', 75],
    ['min(a, b_1, 3) + max(1, 2)', 2.5],
    ['abs(-3) + floor(1.7) + ceil(1.2) + exp(0) + sqrt(9) + log(1)', 10],
    ['0.7 * a + 0.3 * b_1', 1.55],
  ])('%s', (text, wanted) => {
    expect(compute(text)).toBeCloseTo(wanted, 12)
  })

  it.each([
    ['', /missing/],
    ['1 +', /missing at character 4/],
    ['1 2', /not expected at character 3: 2/],
    ['(1', /\) is missing/],
    ['c', /the grader c, which is not there.*a, b_1/],
    ['pow(1, 2)', /no function pow/],
    ['constructor(1)', /no function constructor/],
    ['abs(1, 2)', /abs takes one value/],
    ['a; b', /not a formula at character 2/],
    ['a.b', /not a formula/],
    [`${'('.repeat(200)}1${')'.repeat(200)}`, /nested deeper/],
    ['-'.repeat(500), /nested deeper/],
    ['2^'.repeat(500), /nested deeper/],
    [`1${'+1'.repeat(1500)}`, /longer than/],
  ])('refuses %.20s', (text, message) => {
    expect(() => compute(text)).toThrow(message)
    expect(() => compute(text)).toThrow(ConfigError)
  })

  it('join graders, and stop at a number that is not finite', async () => {
    expect(await grade(multi, 'a b', { answer: 'a b' })).toBe(2)
    const caught = await grade({ ...multi, calculate_output: 'log(exact)' }, 'a', { answer: 'b' }).catch((e) => e)
    expect(caught).toBeInstanceOf(NumericError)
    expect(caught.message).toMatch(/grader both, calculate_output.*-Infinity with exact = 0/)
  })
})

it.each([
  ['no object', 5, ConfigError, /grader: not a grader/],
  ['a type', { ...check, type: 'regex' }, ConfigError, /grader exact, type.*string_check.*"regex"/],
  ['python', { type: 'python', name: 'own', source: '1' }, UnsupportedError, /grader own, type.*python/],
  ['meteor', { ...similar, evaluation_metric: 'meteor' }, UnsupportedError, /grader near, evaluation_metric.*meteor/],
  ['a field', { ...check, refrence: '' }, ConfigError, /grader exact, refrence.*reference/],
  ['no name', { ...check, name: undefined }, ConfigError, /grader, name/],
  ['an operation', { ...check, operation: 'equals' }, ConfigError, /grader exact, operation.*eq, ne, like, ilike/],
  ['a place', { ...check, input: '{{sample.text}}' }, ConfigError, /grader exact, input.*{{sample.text}}/],
  ['tools', { ...check, input: '{{sample.output_tools}}' }, ConfigError, /output_tools/],
  ['a model', score, ConfigError, /grader rated, model: no model stands for gpt.*no models/],
  ['cosine', { ...similar, evaluation_metric: 'cosine' }, ConfigError, /grader near, evaluation_metric.*cosine/],
  ['a range', { ...score, range: [1, 0] }, ConfigError, /grader rated, range/],
  ['a sampling', { ...score, sampling_params: { top_p: 3 } }, ConfigError, /grader rated, sampling_params, top_p/],
  [
    'a picture',
    { ...score, input: [{ role: 'user', content: [{ type: 'input_image' }] }] },
    UnsupportedError,
    /input_image/,
  ],
  ['a role', { ...score, input: [{ role: 'tool', content: '' }] }, ConfigError, /grader rated, input\[0\]/],
  ['labels', { ...label, passing_labels: ['good'] }, ConfigError, /grader tone, passing_labels.*kind, rude.*good/],
  ['a nested multi', { ...multi, graders: { m: multi } }, ConfigError, /grader both, graders.m/],
  [
    'a bad part',
    { ...multi, graders: { m: { ...check, operation: 'is' } } },
    ConfigError,
    /both, graders.m: exact, operation/,
  ],
  ['a formula', { ...multi, calculate_output: 'exact + far' }, ConfigError, /grader both, calculate_output.*far/],
] as const)('refuses %s', (name, grader, error, message) => {
  const models: GraderModels = ['a model', 'cosine'].includes(name) ? {} : { gpt: () => '1' }
  const open = () => openGrader(grader, models)
  expect(open).toThrow(error)
  expect(open).toThrow(message)
})

describe('models', () => {
  it('give scores in the range, and nothing else', async () => {
    const asked: Parameters<Judge>[] = []
    const judge =
      (answer: string): Judge =>
      (...given) => {
        asked.push(given)
        return answer
      }
    const rate = (answer: string) =>
      grade(
        { ...score, range: [0, 5], sampling_params: { seed: 3, temperature: null } },
        'A',
        { answer: 'B' },
        { gpt: judge(answer) },
      )
    expect(await rate('{"steps":[],"result":4.5}')).toBe(4.5)
    expect(await rate('Well: {"result": 0}')).toBe(0)
    expect(await rate(' 3 ')).toBe(3)
    for (const answer of ['7', '-1', 'three', '{"result":"4"}', '', '{"score":1}'])
      expect(await rate(answer), answer).toBeNull()
    const [messages, { schema, ...options }] = asked[0]
    expect(messages).toEqual([{ role: 'user', content: 'Rate A against B' }])
    expect(options).toEqual({ model: 'gpt', seed: 3 })
    expect(schema).toMatchObject({ required: ['steps', 'result'] })
  })

  it('choose labels', async () => {
    const choose = (answer: string) => grade(label, 'A', { answer: 'B' }, { gpt: async () => answer })
    expect(await choose('{"result":"kind"}')).toBe(1)
    expect(await choose('rude')).toBe(0)
    expect(await choose('neither')).toBeNull()
  })

  it('are left out of a formula that they give no grade for', async () => {
    const joined = { ...multi, graders: { exact: check, rated: score }, calculate_output: 'exact' }
    expect(await grade(joined, 'A', { answer: 'B' }, { gpt: () => 'no idea' })).toBeNull()
  })

  it('may be an encoder, for cosine', async () => {
    const session = {
      generate: async () => ({ text: '1' }),
      embed: async (texts: readonly string[]) => texts.map((text) => Float32Array.of(text.length, 1)),
    }
    const found = await grade({ ...similar, evaluation_metric: 'cosine' }, 'abc', { answer: 'a' }, { cosine: session })
    expect(found).toBeCloseTo(4 / Math.sqrt(20), 6)
    expect(await grade(score, 'A', { answer: 'B' }, { gpt: session })).toBe(1)
  })

  /** Grades with a server that answers as `answer` says. */
  async function served(answer: RequestListener) {
    const server = createServer(answer)
    await new Promise<void>((resolve) => void server.listen(0, '127.0.0.1', resolve))
    onTestFinished(() => void server.close())
    const url = `http://127.0.0.1:${(server.address() as AddressInfo).port}/v1`
    return grade(score, 'A', { answer: 'B' }, { gpt: { url, key: 'sesame', model: 'large' } }).catch((error) => error)
  }

  it('may be a server, which is asked again if it is busy', async () => {
    const seen: unknown[] = []
    const found = await served(async (request, response) => {
      let body = ''
      for await (const part of request) body += part
      seen.push([request.url, request.headers.authorization, JSON.parse(body).model])
      if (seen.length === 1) return void response.writeHead(429).end()
      response.end(
        JSON.stringify({ choices: [{ message: { content: '<think>2</think>{"steps":[],"result":0.25}' } }] }),
      )
    })
    expect(found).toBe(0.25)
    expect(seen).toEqual(Array(2).fill(['/v1/chat/completions', 'Bearer sesame', 'large']))
  })

  it.each([
    [
      'redirects',
      /status 302/,
      (_, response) => void response.writeHead(302, { location: 'http://127.0.0.1:1/' }).end(),
    ],
    ['sends no message', /sent no message/, (_, response) => void response.end('{"choices":[]}')],
    ['sends no JSON', /no JSON: <html>/, (_, response) => void response.end('<html>')],
    [
      'does not stop',
      /more than 4000000 bytes/,
      (_, response) => {
        const more = () => response.write('x'.repeat(1 << 20)) && void setImmediate(more)
        response.on('drain', more)
        more()
      },
    ],
  ] as [string, RegExp, RequestListener][])('end if the server %s', async (_, message, answer) => {
    const caught = await served(answer)
    expect(caught).toBeInstanceOf(RuntimeError)
    expect(caught.message).toMatch(message)
  })

  it('are rewards with the names of their graders', async () => {
    const reward = rewardOf(check)
    const about = {
      prompt: '',
      messages: undefined,
      answer: undefined,
      text: 'B',
      tokens: 1,
      turns: [],
      row: { answer: 'B' },
    }
    expect([reward.name, await reward(about)]).toEqual(['exact', 1])
  })
})
