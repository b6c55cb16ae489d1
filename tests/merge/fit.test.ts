// The report of how adapters fit a base, made without merging, agrees with what merges do and refuse.

import { mkdtempSync, readdirSync, readFileSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import path from 'node:path'
import { fileURLToPath } from 'node:url'
import { afterAll, describe, expect, test } from 'vitest'
import {
  type Directory,
  type InspectReport,
  inspect,
  LowrankError,
  MemoryDirectory,
  saveAdapter,
} from '../../src/api/node.js'
import type { Place } from '../../src/core/base/bytes.js'
import { NodeDirectory } from '../../src/files/io/node/files.js'
import { fitOf } from '../../src/merge/fit.js'
import { merge as mergeFolders } from '../../src/merge/merge.js'
import { openPlan } from '../../src/merge/open.js'
import { adapter, base, type TensorSketch } from './toolkit.js'

const golden = fileURLToPath(new URL('../golden', import.meta.url))
const scratch = mkdtempSync(path.join(tmpdir(), 'lowrank-fit-'))
afterAll(() => rmSync(scratch, { recursive: true, force: true }))

async function fitTo(target: string, model: string) {
  const report = (await inspect(target, { base: model })) as InspectReport & { kind: 'adapter' }
  return report.fit!
}

const kinds = path.join(golden, 'kinds')
const cases = readdirSync(kinds, { withFileTypes: true }).flatMap((entry) => (entry.isDirectory() ? entry.name : []))

test.each(cases.filter((name) => !name.includes('groups')))('%s fits the base that it was made for', async (name) => {
  const { base: file } = JSON.parse(readFileSync(path.join(kinds, name, 'expected.json'), 'utf8'))
  const fit = await fitTo(path.join(kinds, name), path.join(kinds, `${file}.safetensors`))
  expect(fit).toMatchObject({
    kind: 'checkpoint',
    fits: true,
    problems: [],
    vocabulary: name.startsWith('convolution') ? null : 32,
  })
  expect(fit.parts.length).toBeGreaterThan(0)
  for (const { problem, tensor, dtype } of fit.parts)
    expect([problem, dtype, typeof tensor]).toEqual([null, 'fp32', 'string'])
})

describe('what does not fit is told part by part', () => {
  const sketches: TensorSketch[] = [
    ['model.embed_tokens.weight', 'fp32', [10, 8]],
    ['model.layers.0.q_proj.weight', 'bf16', [8, 8]],
    ['model.layers.0.k_proj.weight', 'fp32', [4, 8]],
    ['model.layers.0.v_proj.qweight', 'I32', [4, 8]],
    ['model.layers.0.o_proj.weight', 'F8_E4M3', [8, 8]],
  ]

  test('in a checkpoint in shards', async () => {
    const folder = new MemoryDirectory({}, 'adapter')
    const lora = adapter({
      'model.layers.0.q_proj': [8, 8],
      'model.layers.0.k_proj': [8, 8],
      'model.layers.0.v_proj': [8, 8],
      'model.layers.0.o_proj': [8, 8],
      'model.layers.0.q_porj': [8, 8],
      lm_head: [12, 8],
    })
    await saveAdapter(lora, folder)
    const fit = await fitOf({ directory: await base(sketches, { shards: 2 }) }, folder)
    expect(fit).toMatchObject({ fits: false, vocabulary: 10, isTied: false, base: 'base/model.safetensors.index.json' })
    expect(fit.parts).toEqual([
      expect.objectContaining({
        name: 'lm_head',
        tensor: null,
        problem: expect.stringMatching(/no weight for lm_head/),
      }),
      {
        name: 'model.layers.0.k_proj',
        tensor: 'model.layers.0.k_proj.weight',
        shape: [4, 8],
        dtype: 'fp32',
        problem: expect.stringMatching(/another shape.*\(8, 8\), got \(4, 8\)/),
      },
      expect.objectContaining({
        name: 'model.layers.0.o_proj',
        dtype: 'F8_E4M3',
        problem: expect.stringMatching(/fp32, fp16/),
      }),
      expect.objectContaining({
        name: 'model.layers.0.q_porj',
        tensor: null,
        problem: expect.stringMatching(/Nearest to the first: model\.layers\.0\.q_proj/),
      }),
      expect.objectContaining({ name: 'model.layers.0.q_proj', dtype: 'bf16', problem: null }),
      expect.objectContaining({
        name: 'model.layers.0.v_proj',
        problem: expect.stringMatching(/quantized base \(gptq/),
      }),
    ])
  })

  test('a quantized base as a whole', async () => {
    const folder = new MemoryDirectory()
    await saveAdapter(adapter({ 'model.layers.0.q_proj': [8, 8] }), folder)
    const config = { quantization_config: { quant_method: 'awq' } }
    const fit = await fitOf({ directory: await base(sketches, { config }) }, folder)
    expect(fit.fits).toBe(false)
    expect(fit.problems).toEqual([expect.stringMatching(/quantized base \(awq\)/)])
  })

  test('tied embeddings are a note, which says what a merge makes of them', async () => {
    const folder = new MemoryDirectory()
    await saveAdapter(adapter({ lm_head: [10, 8] }), folder)
    const fit = await fitOf(
      { directory: await base(sketches, { config: { model_type: 'llama', tie_word_embeddings: true } }) },
      folder,
    )
    expect(fit).toMatchObject({ fits: true, isTied: true })
    expect(fit.parts[0]).toMatchObject({ tensor: 'model.embed_tokens.weight', problem: null })
    expect(fit.notes).toEqual([
      expect.stringMatching(/model\.embed_tokens\.weight and lm_head\.weight were one weight/),
    ])
  })

  test('another vocabulary', async () => {
    const folder = new MemoryDirectory()
    await saveAdapter(adapter({ 'model.embed_tokens': [12, 8] }), folder)
    const { parts } = await fitOf({ directory: await base(sketches) }, folder)
    expect(parts[0].problem).toMatch(/another vocabulary/)
  })

  test('in ONNX models: missing modules, shapes, quantized weights', async () => {
    const lora = path.join(golden, 'models/llama-optimum/golden/adapter-init')
    const others = await fitTo(lora, path.join(golden, 'models/gpt2-optimum/onnx/model.onnx'))
    expect(others.fits).toBe(false)
    for (const { tensor, problem } of others.parts) {
      expect([tensor, problem]).toEqual([null, expect.stringMatching(/no module for model\.layers/)])
    }
    const quantized = await fitTo(lora, path.join(golden, 'models/llama-q4'))
    const first = quantized.parts.filter(({ name }) => name.includes('layers.0.self_attn'))
    expect(first.map(({ problem, dtype }) => [problem, dtype])).toEqual(first.map(() => [null, 'MatMulNBits']))
    expect(quantized.parts.some(({ problem }) => problem?.includes('no module for model.layers.1'))).toBe(true)
    const experts = await fitTo(path.join(golden, 'experts/gpt-oss'), path.join(golden, 'models/llama-optimum'))
    expect(experts.parts.map(({ problem }) => problem)).toContainEqual(
      expect.stringMatching(/neither layers of experts/),
    )
  })

  test.each(['dora', 'tokens', 'embedding', 'modules-to-save', 'lora-bias', 'bias-all'])(
    'in ONNX models: %s fits, and not a graph of another shape',
    async (name) => {
      const fit = await fitTo(path.join(kinds, name), path.join(golden, 'onnx-kinds/qwen2-ts.onnx'))
      expect(fit.parts.map(({ problem }) => problem)).toEqual(fit.parts.map(() => null))
      for (const { tensor, shape } of fit.parts)
        expect([tensor, shape]).toEqual([expect.any(String), expect.any(Array)])
      const other = await fitTo(path.join(kinds, name), path.join(golden, 'models/qwen2-optimum'))
      expect(other.parts.map(({ problem }) => problem)).not.toContain(null)
    },
  )
})

describe('a merge throws the first problem of its plan, and a look at the fit lists all', () => {
  /** Returns the report of all problems, and expects that a merge throws the first. */
  async function problemsOf(base: Place, lora: Directory, graphs: string[] = []) {
    const format = graphs.length === 0 ? 'safetensors' : 'onnx'
    const tied = graphs.length === 0 ? 'untie' : undefined
    const chosen = { format, graphs, checkpoint: undefined } as const
    const planned = await openPlan({ base, adapters: lora, tied }, chosen, { onlyFits: true })
    const [first] = planned.fit.problems
    await planned.close()
    const merging = mergeFolders({ base, adapters: lora, tied, format, out: new MemoryDirectory() })
    const thrown = await merging.catch((error: unknown) => error)
    expect(thrown).toBeInstanceOf(LowrankError)
    expect((thrown as LowrankError).message).toBe(first.message)
    expect((thrown as LowrankError).code).toBe(first.code)
    const { fits, parts, problems } = await fitOf(base, lora, graphs)
    expect(fits).toBe(false)
    const listed = [...problems, ...parts.flatMap(({ problem }) => problem ?? [])]
    return { first, listed }
  }

  const llama = { model_type: 'llama', tie_word_embeddings: false }
  const sketches: TensorSketch[] = [
    ['model.embed_tokens.weight', 'fp32', [10, 8]],
    ['lm_head.weight', 'fp32', [10, 8]],
    ['model.layers.0.self_attn.q_proj.weight', 'fp32', [8, 8]],
    ['model.layers.0.self_attn.k_proj.weight', 'fp32', [4, 8]],
    ['model.layers.0.self_attn.v_proj.qweight', 'I32', [4, 8]],
    ['model.layers.0.self_attn.o_proj.weight', 'F8_E4M3', [8, 8]],
  ]
  const q4 = { ...llama, quantization_config: { load_in_4bit: true } }
  test.each<[string, string[], Record<string, unknown>, number]>([
    ['a shape', ['k_proj'], llama, 1],
    ['a shape after a layer that is missing', ['a_proj', 'k_proj', 'q_proj'], llama, 2],
    ['layers that are all missing', ['a_proj', 'b_proj'], llama, 2],
    ['a quantized weight and a type', ['v_proj', 'o_proj', 'q_proj'], llama, 2],
    ['a quantized base', ['q_proj'], q4, 1],
    ['all of these', ['a_proj', 'k_proj', 'o_proj', 'q_proj', 'v_proj'], q4, 5],
  ])('%s, in a checkpoint', async (_, names, config, count) => {
    const lora = new MemoryDirectory({}, 'adapter')
    const layers = names.map((name) => [`model.layers.0.self_attn.${name}`, [8, 8]] as const)
    await saveAdapter(adapter(Object.fromEntries(layers)), lora)
    const { listed } = await problemsOf({ directory: await base(sketches, { config }) }, lora)
    expect(listed).toHaveLength(count)
  })

  test('replaced values, in a checkpoint', async () => {
    const own = adapter({ 'model.layers.0.self_attn.q_proj': [8, 8] }, { modulesToSave: ['embed_tokens', 'score'] })
    const values = (rows: number) => ({ data: new Float32Array(rows * 8), shape: [rows, 8] })
    own.addReplacement('model.embed_tokens.weight', values(10), { isTrained: true })
    own.addReplacement('model.score.weight', values(2), { isTrained: true })
    own.addReplacement('model.layers.0.self_attn.k_proj.weight', values(5), { isTrained: true })
    const lora = new MemoryDirectory({}, 'adapter')
    await saveAdapter(own, lora)
    const { first, listed } = await problemsOf({ directory: await base(sketches, { config: llama }) }, lora)
    expect(first.message).toMatch(/another shape/)
    expect(listed).toHaveLength(2)
  })

  test.each([
    ['kinds/dora', 'models/qwen2-optimum'],
    ['kinds/tokens', 'models/qwen2-optimum'],
    ['kinds/modules-to-save', 'models/qwen2-optimum'],
    ['kinds/embedding', 'models/llama-q4'],
    ['experts/gpt-oss', 'models/llama-optimum'],
    ['models/llama-optimum/golden/adapter-init', 'models/gpt2-optimum'],
  ])('%s in %s', async (lora, model) => {
    const directory = new NodeDirectory(path.join(golden, model))
    const { listed } = await problemsOf({ directory }, new NodeDirectory(path.join(golden, lora)), ['onnx/model.onnx'])
    expect(listed.length).toBeGreaterThan(0)
  })
})
