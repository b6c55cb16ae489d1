// What commands print to stdout and stderr, their JSON documents, and how they stop and continue.

import { spawnSync } from 'node:child_process'
import { closeSync, existsSync, openSync, readdirSync, readFileSync } from 'node:fs'
import { join } from 'node:path'
import { beforeAll, describe, expect, it } from 'vitest'
import { lowrankHere } from './in-process.js'
import { binary, DATA, MODEL, ONNX, type Outcome, QUICK, root, scratchFolder, start } from './lowrank.js'

const scratch = scratchFolder()
const adapter = join(scratch, 'adapter')

/** Parses the JSON document on stdout. */
function documentOf({ code, stdout, stderr }: Outcome) {
  expect(code, stderr).toBe(0)
  const document = JSON.parse(stdout)
  expect(Object.keys(document)[0]).toBe('version')
  expect(document.version).toBe(1)
  return document
}

/** A model with two layers of width 32. A run is much faster than on the bundled model. */
const SMALL = join(root, 'tests', 'golden', 'models', 'llama-optimum')
const SMALL_RUN = ['--model', SMALL, '--data', DATA, '--max-steps', '2', '--batch-size', '2', '--max-length', '32']

/** A model of the same size with biases for queries, keys and values. */
const BIASED = join(root, 'tests', 'golden', 'models', 'qwen2-optimum')

let trained: Outcome
beforeAll(async () => {
  trained = await lowrankHere('train', ...QUICK, '--eval-data', DATA, '--out', adapter, '--json')
})

describe('lowrank train', () => {
  it('prints one document with --json, and tells people on stderr', () => {
    const report = documentOf(trained)
    expect(report).toMatchObject({
      steps: 3,
      tokens: 3 * 2 * 32,
      truncatedRecords: expect.any(Number),
      trainableParams: 172_032,
      totalParams: 2_580_480 + 172_032,
      out: adapter,
    })
    expect(report.trainLoss).toHaveLength(3)
    expect(report.evalLoss.after).toBeLessThan(report.evalLoss.before)
    expect(report.evalMetrics.perplexity).toBeCloseTo(Math.exp(report.evalLoss.after), 6)
    for (const name of ['seconds', 'stepMillis', 'peakRssBytes']) expect(report[name], name).toBeGreaterThan(0)
    expect(trained.stderr).toMatch(/Evaluation loss before training: 5\.\d+/)
    expect(trained.stderr).toMatch(/3\/3 {2}loss \d/)
    expect(trained.stderr).not.toContain('\x1b')
  })

  it('writes an adapter folder with a line of metrics a step', () => {
    expect(readdirSync(adapter).sort()).toEqual([
      'README.md',
      'adapter_config.json',
      'adapter_model.safetensors',
      'evaluations.jsonl',
      'lowrank.json',
      'metrics.jsonl',
      'report.html',
      'run.json',
    ])
    const lines = readFileSync(join(adapter, 'metrics.jsonl'), 'utf8').trim().split('\n')
    expect(lines.map((line) => JSON.parse(line).step)).toEqual([1, 2, 3])
  })

  it('trains on prompts and completions, with every option', async () => {
    const out = join(scratch, 'options')
    const options =
      '--rank 2 --alpha 4 --dropout 0.1 --target-modules q_proj,v_proj --init gaussian --epochs 1 --batch-size 16'
    const more =
      '--gradient-accumulation 2 --schedule linear --warmup-ratio 0.1 --weight-decay 0.01 --max-grad-norm 0.5'
    const rest = '--learning-rate 5e-3 --seed 7 --threads 1 --memory low --save-every 1 --max-length 48'
    const args = `${options} ${more} ${rest}`.split(' ')
    const report = documentOf(
      await lowrankHere(
        'train',
        '--model',
        join(SMALL, 'onnx', 'model.onnx'),
        '--data',
        DATA,
        '--out',
        out,
        ...args,
        '--json',
      ),
    )
    expect(report).toMatchObject({ steps: 2, trainableParams: 2 * (2 * (64 + 32) + 2 * (32 + 32)), evalLoss: null })
    const config = JSON.parse(readFileSync(join(out, 'adapter_config.json'), 'utf8'))
    expect(config).toMatchObject({ r: 2, lora_alpha: 4, lora_dropout: 0.1, target_modules: ['q_proj', 'v_proj'] })
  })

  it('takes the defaults of --preset peft, and options before them', async () => {
    const out = join(scratch, 'preset')
    documentOf(await lowrankHere('train', ...SMALL_RUN, '--preset', 'peft', '--rank', '2', '--out', out, '--json'))
    const config = JSON.parse(readFileSync(join(out, 'adapter_config.json'), 'utf8'))
    expect(config).toMatchObject({ r: 2, lora_alpha: 8, target_modules: ['q_proj', 'v_proj'] })
    const run = JSON.parse(readFileSync(join(out, 'run.json'), 'utf8'))
    expect(run).toMatchObject({ preset: 'peft', learningRate: 5e-5, epochs: 3, maxSteps: 2, batchSize: 2 })
  })

  it('trains biases and whole modules, and saves them under the names of PEFT', async () => {
    const out = join(scratch, 'whole')
    // In PEFT, `norm` also matches input_layernorm, because names match by their end.
    const own = ['--bias', 'lora_only', '--modules-to-save', 'norm', '--target-modules', 'q_proj,v_proj']
    const args = ['--model', BIASED, ...SMALL_RUN.slice(2), ...own, '--rank', '2', '--out', out, '--json']
    const { trainableParams } = documentOf(await lowrankHere('train', ...args))
    expect(trainableParams).toBe(2 * (2 * (32 + 32) + 2 * (32 + 16)) + 2 * (32 + 16) + 5 * 32)
    const config = JSON.parse(readFileSync(join(out, 'adapter_config.json'), 'utf8'))
    expect(config).toMatchObject({ bias: 'lora_only', modules_to_save: ['norm'] })
    const file = readFileSync(join(out, 'adapter_model.safetensors'))
    const names = Object.keys(JSON.parse(file.toString('utf8', 8, 8 + Number(file.readBigUInt64LE()))))
    expect(names.filter((name) => /norm\.weight$/.test(name))).toHaveLength(5)
    expect(names.filter((name) => /[qv]_proj(\.base_layer)?\.bias$/.test(name))).toHaveLength(4)
  })

  it('trains the rows of tokens, given by text and id, and run.json repeats it', async () => {
    const [out, again] = [join(scratch, 'tokens'), join(scratch, 'tokens-again')]
    const args = ['--trained-tokens', 'a,86', '--target-modules', 'q_proj', '--rank', '2', '--out', out, '--json']
    const { trainableParams } = documentOf(await lowrankHere('train', ...SMALL_RUN, ...args))
    expect(trainableParams).toBe(2 * 2 * (32 + 64) + 2 * 32)
    const { trainable_token_indices: tokens } = JSON.parse(readFileSync(join(out, 'adapter_config.json'), 'utf8'))
    expect(tokens).toEqual([67, 86])
    await lowrankHere('train', '--config', join(out, 'run.json'), '--out', again)
    const [first, second] = [out, again].map((folder) => readFileSync(join(folder, 'adapter_model.safetensors')))
    expect(first).toEqual(second)
  })

  it('overwrites its own run when asked', async () => {
    const out = join(scratch, 'again')
    expect((await lowrankHere('train', ...SMALL_RUN, '--out', out)).code).toBe(0)
    const refused = await lowrankHere('train', ...SMALL_RUN, '--out', out)
    expect(refused.code).toBe(1)
    expect(
      documentOf(await lowrankHere('train', ...SMALL_RUN, '--rank', '4', '--out', out, '--overwrite', '--json')).steps,
    ).toBe(2)
    expect(documentOf(await lowrankHere('inspect', out, '--json')).config.rank).toBe(4)
  })
})

describe('lowrank inspect', () => {
  it('shows an adapter', async () => {
    const report = documentOf(await lowrankHere('inspect', adapter, '--json'))
    expect(report.config).toMatchObject({ rank: 8, alpha: 16, taskType: 'CAUSAL_LM' })
    expect(report.trainableParams).toBe(172_032)
    expect(report.warnings).toEqual([])
    expect(report.layers[0]).toMatchObject({
      name: expect.stringMatching(/^model\.layers\.0\./),
      kind: 'linear',
      d: expect.any(Number),
      k: expect.any(Number),
      rank: 8,
      alpha: 16,
      scaling: 2,
      dtype: 'fp32',
      normA: expect.any(Number),
      normB: expect.any(Number),
      normDelta: expect.any(Number),
    })
    const { stdout } = await lowrankHere('inspect', adapter)
    expect(stdout).toMatch(/42 layers, 172,032 parameters/)
    expect(stdout.split('\n').filter((line) => line.startsWith('model.layers.'))).toHaveLength(42)
  })

  it('shows an ONNX model and a checkpoint', async () => {
    const onnx = documentOf(await lowrankHere('inspect', ONNX, '--json'))
    expect(onnx.linears).toHaveLength(43)
    expect(onnx.linears[0]).toMatchObject({ name: 'model.layers.0.self_attn.q_proj', d: 192, k: 192, isHead: false })
    const checkpoint = documentOf(await lowrankHere('inspect', join(MODEL, 'model.safetensors'), '--json'))
    expect(checkpoint.params).toBe(2_976_192)
    expect((await lowrankHere('inspect', MODEL)).stdout).toContain('model.embed_tokens.weight')
  })
})

describe('lowrank generate', () => {
  const prompt = ['--prompt', 'And the people', '--max-new-tokens', '8']
  const greedy = [...prompt, '--temperature', '0']

  it('writes the text, and nothing else, to stdout', async () => {
    const report = documentOf(await lowrankHere('generate', '--model', MODEL, ...greedy, '--json'))
    expect(report).toMatchObject({ text: expect.any(String), tokens: 8, adapter: null })
    expect(report.seconds).toBeGreaterThan(0)
    const plain = await lowrankHere('generate', '--model', MODEL, ...greedy)
    expect(plain.stdout).toBe(`${report.text}\n`)
  })

  it('repeats itself with a seed, and differs with another', async () => {
    const sample = (seed: string) =>
      lowrankHere(
        'generate',
        '--model',
        SMALL,
        ...prompt,
        '--temperature',
        '1',
        '--top-k',
        '50',
        '--top-p',
        '0.9',
        '--seed',
        seed,
      )
    const [one, same, other] = await Promise.all([sample('1'), sample('1'), sample('2')])
    expect(same.stdout).toBe(one.stdout)
    expect(other.stdout).not.toBe(one.stdout)
  })

  it('writes one text for each adapter', async () => {
    const strong = join(root, 'tests', 'golden', 'peft', 'f32')
    const report = documentOf(
      await lowrankHere('generate', '--model', MODEL, '--adapter', adapter, '--adapter', strong, ...greedy, '--json'),
    )
    expect(report.results.map((result: { adapter: string }) => result.adapter)).toEqual([adapter, strong])
    expect(report.text).toBe(report.results[0].text)
    expect(report.results[1].text).not.toBe(report.text)
  })
})

describe('a reader that closes early', () => {
  it('ends the program without an error, in the middle of a text too', async () => {
    const { child, done } = start(['generate', '--model', MODEL, '--prompt', 'The', '--max-new-tokens', '200'])
    child.stdout!.once('data', () => child.stdout!.destroy())
    const { code, stderr } = await done
    expect(stderr).not.toMatch(/error|terminate/)
    expect(code).toBe(0)
  })

  it.skipIf(!existsSync('/dev/full'))('a full disk behind stdout is one error', () => {
    const full = openSync('/dev/full', 'w')
    try {
      const args = [binary, 'generate', '--model', MODEL, '--prompt', 'The', '--max-new-tokens', '5']
      const { status, stderr } = spawnSync(process.execPath, args, {
        stdio: ['ignore', full, 'pipe'],
        encoding: 'utf8',
      })
      expect(stderr.match(/error: .*/g)).toEqual([expect.stringMatching(/^error: stdout: cannot be written: ENOSPC/)])
      expect(status).toBe(1)
    } finally {
      closeSync(full)
    }
  })
})

describe('lowrank merge', () => {
  it('makes an ONNX model folder that writes what base and adapter write', async () => {
    const out = join(scratch, 'merged')
    const report = documentOf(await lowrankHere('merge', '--base', ONNX, '--adapter', adapter, '--out', out, '--json'))
    expect(report).toMatchObject({ changed: 42, tensors: expect.any(Number), bytes: expect.any(Number) })
    expect(report.seconds).toBeGreaterThan(0)
    expect(report.peakRssBytes).toBeGreaterThan(0)
    expect(report.layers).toHaveLength(42)
    for (const { relativeChange } of report.layers) expect(relativeChange).toBeGreaterThan(0)
    const prompt = ['--prompt', 'And the people', '--max-new-tokens', '12', '--temperature', '0']
    const merged = await lowrankHere('generate', '--model', out, ...prompt)
    const adapted = await lowrankHere('generate', '--model', MODEL, '--adapter', adapter, ...prompt)
    expect(merged.stdout).toBe(adapted.stdout)
    expect((await lowrankHere('merge', '--base', ONNX, '--adapter', adapter, '--out', out)).code).toBe(1)
    expect((await lowrankHere('merge', '--base', ONNX, '--adapter', adapter, '--out', out, '--overwrite')).code).toBe(0)
  })

  it('shows the ten largest changes, or with --verbose all', async () => {
    const merged = (name: string, ...more: string[]) =>
      lowrankHere('merge', '--base', ONNX, '--adapter', adapter, '--out', join(scratch, name), ...more)
    const { stdout, stderr } = await merged('ten.onnx')
    const lines = stdout.trimEnd().split('\n')
    expect(lines).toHaveLength(11)
    expect(lines[0]).toMatch(/^10 largest changes +change/)
    const changes = lines.slice(1).map((line) => Number(line.split(/ +/).at(-1)))
    expect(changes).toEqual(changes.toSorted((a, b) => b - a))
    expect(stderr).toMatch(/of 42 layers: from [\d.e-]+ to [\d.e-]+, in the middle/)
    expect((await merged('all.onnx', '--verbose')).stdout.trimEnd().split('\n')).toHaveLength(43)
  })

  it('makes single files', async () => {
    const onnx = join(scratch, 'merged.onnx')
    documentOf(await lowrankHere('merge', '--base', ONNX, '--adapter', adapter, '--out', onnx, '--json'))
    expect(documentOf(await lowrankHere('inspect', onnx, '--json')).linears).toHaveLength(43)
    const checkpoint = join(scratch, 'merged.safetensors')
    const base = join(MODEL, 'model.safetensors')
    const report = documentOf(
      await lowrankHere('merge', '--base', base, '--adapter', adapter, '--out', checkpoint, '--json'),
    )
    expect(report).toMatchObject({ changed: 42, tensors: 56 })
    expect(documentOf(await lowrankHere('inspect', checkpoint, '--json')).params).toBe(2_976_192)
  })

  it('adds up adapters with weights in an ONNX model', async () => {
    const [once, sum] = [join(scratch, 'once.onnx'), join(scratch, 'sum.onnx')]
    const parts = ['--adapter', adapter, '--weight', '0.75', '--adapter', adapter, '--weight', '0.25']
    const one = documentOf(await lowrankHere('merge', '--base', ONNX, '--adapter', adapter, '--out', once, '--json'))
    const both = documentOf(await lowrankHere('merge', '--base', ONNX, ...parts, '--out', sum, '--json'))
    expect(both).toMatchObject({ changed: 42, bytes: one.bytes })
    expect(both.layers).toHaveLength(one.layers.length)
    both.layers.forEach(({ name, relativeChange }: { name: string; relativeChange: number }, i: number) => {
      expect(name).toBe(one.layers[i].name)
      expect(relativeChange / one.layers[i].relativeChange).toBeCloseTo(1, 3)
    })
  })

  it('merges into a checkpoint folder, several adapters with weights too', async () => {
    const out = join(scratch, 'both')
    const adapters = ['--adapter', adapter, '--adapter', adapter, '--weight', '-1']
    const report = documentOf(await lowrankHere('merge', '--base', MODEL, ...adapters, '--out', out, '--json'))
    for (const { relativeChange } of report.layers) expect(relativeChange).toBeLessThan(1e-6)
    expect(existsSync(join(out, 'config.json'))).toBe(true)
  })

  it('writes nothing in a dry run', async () => {
    for (const base of [ONNX, MODEL]) {
      const out = join(scratch, 'dry')
      const plan = documentOf(
        await lowrankHere('merge', '--base', base, '--adapter', adapter, '--out', out, '--dry-run', '--json'),
      )
      expect(plan).toMatchObject({ dryRun: true, changed: 42 })
      expect(existsSync(out)).toBe(false)
    }
  })
})

describe('help and version', () => {
  it.each(['train', 'merge', 'unmerge', 'inspect', 'generate', 'classify', 'embed'])('explains %s', async (name) => {
    const { code, stdout } = await lowrankHere(name, '--help')
    expect(code).toBe(0)
    expect(stdout).toContain(`lowrank ${name} `)
    expect(stdout).toContain('--json')
    expect(stdout).toContain('Examples')
  })

  it('lists the commands and tells the version', async () => {
    const { stdout } = await lowrankHere('--help')
    expect((await lowrankHere()).stdout).toBe(stdout)
    for (const name of ['train', 'merge', 'unmerge', 'inspect', 'generate', 'classify', 'embed'])
      expect(stdout).toContain(`  ${name} `)
    expect((await lowrankHere('--version')).stdout).toMatch(/^\d+\.\d+\.\d+\n$/)
  })
})
