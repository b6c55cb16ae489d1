// lowrank classify and lowrank embed: labels of a run and of a model, vectors, and errors.

import { readFileSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { describe, expect, it } from 'vitest'
import { lowrankHere } from './in-process.js'
import { root, scratchFolder } from './lowrank.js'

/** Quotes a path with spaces for a shell. */
const quoted = (path: string) => (path.includes(' ') ? `'${path}'` : path)

const MODELS = join(root, 'tests/golden/text-classification')
const scratch = scratchFolder()

describe('lowrank classify', () => {
  it('gives the labels that a run has learned', async () => {
    const data = join(scratch, 'moods.jsonl')
    const rows = ['the king is happy', 'a good day', 'the rain is grim', 'a bad night'].map((text, i) => {
      return JSON.stringify({ text, label: i < 2 ? 'up' : 'down' })
    })
    writeFileSync(data, rows.join('\n'))
    const [model, out] = [join(MODELS, 'encoder'), join(scratch, 'moods')]
    const trained = await lowrankHere(
      ...['train', '--model', model, '--data', data, '--out', out, '--task', 'text-classification', '--threads', '1'],
      ...['--rank', '4', '--epochs', '30', '--learning-rate', '2e-2', '--batch-size', '4'],
    )
    expect(trained.stderr).toContain(
      `Try it: npx lowrank classify --model ${quoted(model)} --adapter ${out} --text "the king is happy"`,
    )
    const args = [
      'classify',
      '--model',
      model,
      '--adapter',
      out,
      '--text',
      'the king is happy',
      '--text',
      'a bad night',
    ]
    const { code, stdout } = await lowrankHere(...args)
    expect(code).toBe(0)
    expect(stdout).toMatch(/^up 0\.\d{3} {2}the king is happy\ndown 0\.\d{3} {2}a bad night\n$/)
    const rowsOf = await lowrankHere('classify', '--model', model, '--adapter', out, '--data', data)
    const labels = rowsOf.stdout
      .trim()
      .split('\n')
      .map((line) => JSON.parse(line).label)
    expect([rowsOf.code, labels]).toEqual([0, ['up', 'up', 'down', 'down']])
    const { version, results } = JSON.parse((await lowrankHere(...args, '--top-k', '2', '--json')).stdout)
    expect(version).toBe(1)
    expect(results[1]).toMatchObject({ adapter: out, text: 'a bad night', label: 'down', isTruncated: false })
    expect(results[1].labels.map(({ label }: { label: string }) => label)).toEqual(['down', 'up'])
    expect(results[1].logits).toHaveLength(2)
  })

  it('takes pairs, and the head that the model has', async () => {
    const args = [
      'classify',
      '--model',
      join(MODELS, 'classifier'),
      '--text',
      'Rain came',
      '--text-pair',
      'it is a day',
    ]
    const { stdout, stderr } = await lowrankHere(...args, '--max-length', '6')
    expect(stdout).toMatch(/^(calm|glad|sad) 0\.\d{3}\n$/)
    expect(stderr).toContain('1 of 1 texts are too long')
  })

  it('prints the entities that a run has learned to find, and the tags of words', async () => {
    const data = join(scratch, 'names.jsonl')
    const rows = [
      {
        text: 'the king Ahab saw the Red Sea',
        entities: [
          { start: 9, end: 13, label: 'PER' },
          { start: 22, end: 29, label: 'LOC' },
        ],
      },
      { words: ['a', 'good', 'day'], tags: ['O', 'O', 'O'] },
    ]
    writeFileSync(data, rows.map((row) => JSON.stringify(row)).join('\n'))
    const [model, out] = [join(MODELS, 'encoder'), join(scratch, 'names')]
    const trained = await lowrankHere(
      ...['train', '--model', model, '--data', data, '--out', out, '--task', 'token-classification', '--threads', '1'],
      ...['--rank', '4', '--epochs', '40', '--learning-rate', '2e-2', '--batch-size', '2'],
    )
    expect(trained.stderr).toContain(
      `Try it: npx lowrank classify --model ${quoted(model)} --adapter ${out} --text "the king Ahab saw the Red Sea"`,
    )
    const texts = ['--text', 'the king Ahab saw the Red Sea', '--text', 'a good day']
    const args = ['classify', '--model', model, '--adapter', out, ...texts]
    const { stdout } = await lowrankHere(...args)
    expect(stdout).toMatch(
      /^PER Ahab 0\.\d{3}, LOC Red Sea 0\.\d{3} {2}the king Ahab saw the Red Sea\nno entities {2}a good day\n$/,
    )
    const { results } = JSON.parse((await lowrankHere(...args, '--json')).stdout)
    expect(results[0]).toMatchObject({
      adapter: out,
      isTruncated: false,
      entities: [{ label: 'PER', start: 9, end: 13 }, { label: 'LOC' }],
    })
    expect(results[0].words.map(({ tag }: { tag: string }) => tag).join(' ')).toBe('O O B-PER O O B-LOC I-LOC')
    const pair = await lowrankHere('classify', '--model', model, '--adapter', out, '--text', 'a', '--text-pair', 'b')
    expect(pair).toMatchObject({ code: 2, stderr: expect.stringContaining('--text-pair is for labels of whole texts') })
  })

  it.each<[args: string[], code: number, message: RegExp]>([
    [['--model', join(MODELS, 'encoder')], 2, /--text TEXT is missing/],
    [['--text', 'a'], 2, /--model DIR\|FILE\|ID is missing/],
    [['--model', join(MODELS, 'encoder'), '--text', 'a', '--text', 'b', '--text-pair', 'c'], 2, /2, but there are 1/],
    [['--model', join(MODELS, 'encoder'), '--text', 'a'], 1, /has no head that gives labels to texts/],
    [['--model', join(root, 'models/union-3m'), '--text', 'a'], 1, /call generate/],
  ])('refuses %j', async (args, code, message) => {
    const outcome = await lowrankHere('classify', ...args)
    expect(outcome.code).toBe(code)
    expect(outcome.stderr).toMatch(message)
    expect(outcome.stdout).toBe('')
  })
})

describe('lowrank embed', () => {
  const model = join(MODELS, 'encoder')

  it('prints a vector for each text', async () => {
    const adapter = join(root, 'tests/golden/embedding/adapter-init')
    const args = [
      'embed',
      '--model',
      model,
      '--adapter',
      adapter,
      '--text',
      'The sea was calm.',
      '--text',
      'a good day',
    ]
    const { code, stdout } = await lowrankHere(...args)
    expect(code).toBe(0)
    const vectors = stdout
      .trim()
      .split('\n')
      .map((line) => JSON.parse(line) as number[])
    const { texts, mean } = JSON.parse(readFileSync(join(root, 'tests/golden/embedding/golden.json'), 'utf8'))
    expect(texts[0]).toBe('The sea was calm.')
    vectors[0].forEach((value, i) => void expect(value).toBeCloseTo(mean[0][i], 5))
    expect(Math.hypot(...vectors[1])).toBeCloseTo(1, 5)
    const { results } = JSON.parse((await lowrankHere(...args, '--dimensions', '4', '--raw', '--json')).stdout)
    expect(results[0]).toMatchObject({ adapter, text: 'The sea was calm.' })
    expect(results[1].vector).toHaveLength(4)
  })

  it.each<[args: string[], code: number, message: RegExp]>([
    [['--model', model], 2, /--text TEXT is missing/],
    [['--model', join(MODELS, 'classifier'), '--text', 'a'], 1, /no vectors of tokens/],
    [['--model', model, '--text', 'a', '--dimensions', '99'], 2, /--dimensions: .*at most 16/],
  ])('refuses %j', async (args, code, message) => {
    const outcome = await lowrankHere('embed', ...args)
    expect(outcome.code).toBe(code)
    expect(outcome.stderr).toMatch(message)
    expect(outcome.stdout).toBe('')
  })
})
