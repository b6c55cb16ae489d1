// mlx-lm, there and back; what is refused. scripts/golden/check_exchange.py checks that mlx-lm opens the results.

import { readFileSync } from 'node:fs'
import { describe, expect, it } from 'vitest'
import { CONVERT_ADAPTER_OPTIONS } from '../../../src/api/gen/options.js'
import { convertAdapter, LoraAdapter, loadAdapter, MemoryDirectory } from '../../../src/api/node.js'
import { ADAPTER_FORMATS, FORMATS, formatOf } from '../../../src/merge/exchange/formats.js'
import { goldenPath } from '../../golden.js'
import { changes, distance } from '../tools/adapters.js'

function expectAlike(got: LoraAdapter, wanted: LoraAdapter, tolerance: number): void {
  const [after, before] = [changes(got), changes(wanted)]
  expect([...after.keys()].sort()).toEqual([...before.keys()].sort())
  for (const [name, { data }] of before) expect(distance(after.get(name)!.data, data), name).toBeLessThan(tolerance)
}

it.each(['llama', 'llama-rslora', 'llama-patterns', 'qwen2'])(
  'mlx: keeps the change of %s there and back',
  async (name) => {
    const [there, back] = [new MemoryDirectory(), new MemoryDirectory()]
    const report = await convertAdapter(goldenPath('gguf', name), { to: 'mlx', out: there })
    expect(report).toMatchObject({ from: 'peft', to: 'mlx', layers: name === 'llama' ? 15 : 14 })
    expect(await convertAdapter(there, { to: 'peft', out: back })).toMatchObject({ from: 'mlx' })
    expectAlike(await loadAdapter(back), await loadAdapter(goldenPath('gguf', name)), 1e-6)
  },
)

describe('mlx', () => {
  const to = 'mlx'

  it('writes half types', async () => {
    const [there, back] = [new MemoryDirectory(), new MemoryDirectory()]
    await convertAdapter(goldenPath('gguf', 'llama'), { to, out: there, outDtype: 'fp16' })
    await convertAdapter(there, { to: 'peft', out: back })
    const adapter = await loadAdapter(back)
    expect(adapter.parts('linear')[0].dtype).toBe('fp16')
    expectAlike(adapter, await loadAdapter(goldenPath('gguf', 'llama')), 1e-3)
    const refused = convertAdapter(goldenPath('gguf', 'llama'), { to, out: new MemoryDirectory(), outDtype: 'q8_0' })
    await expect(refused).rejects.toThrow(/outDtype: q8_0 is a type of GGUF/)
  })

  it.each([
    ['tokens', /rows of tokens/],
    ['convolution', /adapted convolutions/],
    ['modules-to-save', /whole tensors/],
  ])('refuses %s by name', async (name, message) => {
    const out = new MemoryDirectory()
    await expect(convertAdapter(goldenPath('kinds', name), { to, out })).rejects.toThrow(message)
    expect(out.files.size).toBe(0)
  })
})

it('has one table of formats, which the public API and the documentation name', async () => {
  expect(CONVERT_ADAPTER_OPTIONS.to.words).toEqual(Object.keys(FORMATS))
  const page = readFileSync('docs/formats.md', 'utf8')
  for (const name of ADAPTER_FORMATS) {
    expect(await formatOf(name).load()).toEqual({ write: expect.any(Function) })
    expect(page).toContain(name)
  }
})

it('keeps DoRA and embeddings in mlx-lm’s folder, with the keys of its config', async () => {
  for (const name of ['dora-rslora', 'embedding']) {
    const [there, back] = [new MemoryDirectory(), new MemoryDirectory()]
    await convertAdapter(goldenPath('kinds', name), { to: 'mlx', out: there })
    const config = JSON.parse(new TextDecoder().decode(there.files.get('adapter_config.json')))
    expect(config).toMatchObject({ fine_tune_type: name === 'embedding' ? 'lora' : 'dora', num_layers: -1 })
    expect(config.lora_parameters.keys).toContain('self_attn.q_proj')
    if (name === 'embedding') expect(config.lora_parameters.keys).toContain('model.embed_tokens')
    await convertAdapter(there, { to: 'peft', out: back })
    const [got, wanted] = [await loadAdapter(back), await loadAdapter(goldenPath('kinds', name))]
    expectAlike(got, wanted, 1e-6)
    for (const { name: layer, magnitude } of wanted.parts('linear'))
      expect(got.layer(layer).magnitude).toEqual(magnitude)
  }
})

describe('convertAdapter', () => {
  it.each(['gguf', 'mlx', 'peft'] as const)('tells how far it is, and leaves nothing when stopped: %s', async (to) => {
    const source = goldenPath('gguf', 'llama')
    const seen: string[] = []
    const progress = ({ done, total, name }: { done: number; total: number; name: string }) => {
      seen.push(`${done}/${total} ${name}`)
    }
    await convertAdapter(source, { to, base: source, out: new MemoryDirectory(), on: { progress } })
    const total = { gguf: 30, mlx: 15, peft: 1 }[to]
    expect(seen).toHaveLength(total)
    expect(seen.at(-1)).toMatch(new RegExp(`^${total}/${total} \\S+`))
    const stop = new AbortController()
    const out = new MemoryDirectory()
    if (to === 'peft') stop.abort()
    const run = convertAdapter(source, {
      to,
      base: source,
      out,
      signal: stop.signal,
      on: { progress: () => stop.abort() },
    })
    await expect(run).rejects.toThrow(/abort/)
    expect(out.files.size).toBe(0)
  })

  it('refuses values that a half type cannot hold, and leaves no file', async () => {
    const adapter = new LoraAdapter({ rank: 1, targetModules: ['q_proj'] })
    const rows = Array.from({ length: 32 }, () => [1])
    adapter.addFactors('model.layers.0.self_attn.q_proj', [[1e6, 1]], rows)
    const [out, base] = [new MemoryDirectory(), goldenPath('gguf', 'llama')]
    await expect(convertAdapter(adapter, { to: 'gguf', base, out, outDtype: 'fp16' })).rejects.toThrow(
      /q_proj: a value that is not finite in fp16.*bf16/,
    )
    expect(out.files.size).toBe(0)
  })

  it('reads folders of PEFT and mlx-lm only', async () => {
    const file = goldenPath('combine', 'cases.json')
    const refused = convertAdapter(file, { to: 'peft', out: new MemoryDirectory() })
    await expect(refused).rejects.toThrow(/cases.json: cannot be read as an adapter; expected the folder/)
    const empty = new MemoryDirectory()
    await expect(convertAdapter(empty, { to: 'peft', out: new MemoryDirectory() })).rejects.toThrow(
      /adapter_config.json/,
    )
  })

  it('leaves a file that is there already', async () => {
    const out = new MemoryDirectory({ 'adapter.gguf': 'mine' })
    const base = goldenPath('gguf', 'llama')
    await expect(convertAdapter(base, { to: 'gguf', base, out })).rejects.toThrow(/exists already/)
    expect(new TextDecoder().decode(out.files.get('adapter.gguf'))).toBe('mine')
  })
})
