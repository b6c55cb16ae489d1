// lowrank train --config: the options of a run from a file, and run.json, which repeats it.

import { mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { afterAll, beforeAll, describe, expect, it } from 'vitest'
import { lowrankHere } from './in-process.js'

let scratch: string
beforeAll(() => {
  scratch = mkdtempSync(join(tmpdir(), 'lowrank-run-file-'))
})
afterAll(() => rmSync(scratch, { recursive: true }))

const MODEL = 'tests/golden/models/llama-optimum'
const DATA = 'models/data/scripture.eval.jsonl'

const write = (name: string, text: string) => {
  const file = join(scratch, name)
  writeFileSync(file, text)
  return file
}
const read = (...path: string[]) => readFileSync(join(scratch, ...path))
const train = (...args: string[]) => lowrankHere('train', ...args)

const YAML = `# A run
model: ${MODEL}
data: [${DATA}]
evalSplit: 0.2
maxSteps: 3
maxLength: 24
batchSize: 2
threads: 1
learningRate: 5e-3
config:
  rank: 2
  targetModules: [q_proj, v_proj]
`

describe('--config', () => {
  it('trains by a YAML file; run.json repeats the run, byte for byte', async () => {
    const file = write('run.yaml', YAML)
    expect(await train('--config', file, '--out', join(scratch, 'a'))).toMatchObject({ code: 0 })
    const record = JSON.parse(read('a', 'run.json').toString())
    expect(record).toMatchObject({
      model: MODEL,
      data: [DATA],
      evalSplit: 0.2,
      task: 'causal-lm',
      maxSteps: 3,
      learningRate: 5e-3,
      schedule: 'cosine',
      keep: 'last',
      config: { rank: 2, alpha: 16, targetModules: ['q_proj', 'v_proj'], seed: 42 },
    })
    expect(Object.keys(record)).not.toContain('out')
    expect(await train('--config', join(scratch, 'a', 'run.json'), '--out', join(scratch, 'b'))).toMatchObject({
      code: 0,
    })
    for (const name of ['adapter_model.safetensors', 'adapter_config.json', 'run.json']) {
      expect(read('b', name), name).toEqual(read('a', name))
    }
    expect(read('a', 'README.md').toString()).toContain('pipeline_tag: text-generation')
  })

  it('lets options of the command line replace those of the file', async () => {
    const file = write('run.yaml', `${YAML}out: ${join(scratch, 'c')}\n`)
    const outcome = await train('--config', file, '--rank', '3', '--max-steps', '1', '--alpha', '4')
    expect(outcome).toMatchObject({ code: 0 })
    expect(JSON.parse(read('c', 'run.json').toString())).toMatchObject({
      maxSteps: 1,
      learningRate: 5e-3,
      config: { rank: 3, alpha: 4, targetModules: ['q_proj', 'v_proj'] },
    })
  })

  it('records --warmup-steps and --num-layers, and takes one kind of warm-up', async () => {
    const file = write('run.yaml', `${YAML}warmupRatio: 0.5\nout: ${join(scratch, 'd')}\n`)
    expect(await train('--config', file, '--warmup-steps', '2', '--num-layers', '1')).toMatchObject({ code: 0 })
    const record = JSON.parse(read('d', 'run.json').toString())
    expect(record).toMatchObject({ warmupSteps: 2, numLayers: 1, config: { targetModules: ['q_proj', 'v_proj'] } })
    expect(record).not.toHaveProperty('warmupRatio')
    const lines = read('d', 'metrics.jsonl').toString().trim().split('\n')
    const rates = lines.flatMap((line) => JSON.parse(line).learningRate ?? [])
    expect(rates).toEqual([0, 2.5e-3, 5e-3])
    const { layers_to_transform: layers } = JSON.parse(read('d', 'adapter_config.json').toString())
    expect(layers).toEqual([1])
    expect(await train('--config', join(scratch, 'd', 'run.json'), '--out', join(scratch, 'e'))).toMatchObject({
      code: 0,
    })
    expect(read('e', 'adapter_model.safetensors')).toEqual(read('d', 'adapter_model.safetensors'))
    const both = await train(
      '--config',
      file,
      '--out',
      join(scratch, 'f'),
      '--warmup-steps',
      '2',
      '--warmup-ratio',
      '0',
    )
    expect([both.code, both.stderr]).toEqual([
      2,
      expect.stringContaining('--warmup-steps: not together with --warmup-ratio'),
    ])
  })

  it.each([
    ['lerningRate: 1', 1, /bad\.yaml: lerningRate: train has no such option\. Did you mean learningRate/],
    ['max_steps: 1', 1, /bad\.yaml: max_steps: .*Did you mean maxSteps/],
    ['maxSteps: many', 1, /bad\.yaml: maxSteps: .*expected an integer of at least 1, got "many"/],
    ['config: {rnk: 3}', 1, /bad\.yaml: rnk: .*Did you mean rank/],
    ['maxSteps: 1\nmaxSteps: 2', 1, /bad\.yaml: not valid YAML or JSON \(Map keys must be unique/],
    ['{"maxSteps": 1', 1, /bad\.yaml: not valid YAML or JSON/],
  ])('says what is wrong in the file: %s', async (line, code, message) => {
    const file = write('bad.yaml', line.startsWith('{') ? line : `model: ${MODEL}\ndata: ${DATA}\n${line}\n`)
    const outcome = await train('--config', file, '--out', join(scratch, 'never'))
    expect(outcome.stderr).toMatch(message)
    expect(outcome.code).toBe(code)
  })

  it('wants a model and data from the file or the command line', async () => {
    expect(await train('--out', join(scratch, 'never'))).toMatchObject({ code: 2, stderr: /--model .* is missing/ })
    const file = write('some.yaml', `model: ${MODEL}\n`)
    const outcome = await train('--config', file, '--out', join(scratch, 'never'))
    expect(outcome).toMatchObject({ code: 2 })
    expect(outcome.stderr).toMatch(/--data .* is missing; .*some\.yaml has model$/m)
    expect((await train('--config', write('list.yaml', '- 1'))).stderr).toMatch(
      /not the options of a run; .*got a list/,
    )
    expect((await train('--config', join(scratch, 'none.yaml'))).stderr).toMatch(/none\.yaml: no such file/)
  })
})
