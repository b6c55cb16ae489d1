// mlx-lm and .onnx_adapter: there and back, a file that ONNX Runtime wrote, and what is refused. That mlx-lm and ONNX
// Runtime open the results is checked by scripts/golden/check_exchange.py.

import { readFileSync } from 'node:fs'
import { describe, expect, it } from 'vitest'
import { MemoryDirectory } from '../../src/base/bytes.js'
import { ADAPTER_FORMATS, FORMATS, formatOf } from '../../src/exchange/formats.js'
import { CONVERT_ADAPTER_OPTIONS } from '../../src/index/gen/options.js'
import { usePlatform } from '../../src/index/platform/platform.js'
import { convertAdapter } from '../../src/index/tools.js'
import { NodeDirectory } from '../../src/io/node/files.js'
import { LoraAdapter } from '../../src/lora/adapter.js'
import { nodePlatform } from '../../src/node/platform.js'
import { loadAdapter } from '../../src/peft/adapter-folder.js'
import { goldenPath } from '../golden.js'
import { changes, distance } from '../tools/adapters.js'

usePlatform(nodePlatform)

function expectAlike(got: LoraAdapter, wanted: LoraAdapter, tolerance: number): void {
  const [after, before] = [changes(got), changes(wanted)]
  expect([...after.keys()].sort()).toEqual([...before.keys()].sort())
  for (const [name, { data }] of before) expect(distance(after.get(name)!.data, data), name).toBeLessThan(tolerance)
}

describe.each(['mlx', 'onnx-adapter'] as const)('%s', (to) => {
  it.each(['llama', 'llama-rslora', 'llama-patterns', 'qwen2'])(
    'keeps the change of %s there and back',
    async (name) => {
      const [there, back] = [new MemoryDirectory(), new MemoryDirectory()]
      const report = await convertAdapter(goldenPath('gguf', name), { to, out: there })
      expect(report).toMatchObject({ from: 'peft', to, layers: name === 'llama' ? 15 : 14 })
      expect(await convertAdapter(there, { to: 'peft', out: back })).toMatchObject({ from: to })
      expectAlike(await loadAdapter(back), await loadAdapter(new NodeDirectory(goldenPath('gguf', name))), 1e-6)
    },
  )

  it('writes half types', async () => {
    const [there, back] = [new MemoryDirectory(), new MemoryDirectory()]
    await convertAdapter(goldenPath('gguf', 'llama'), { to, out: there, outDtype: 'fp16' })
    await convertAdapter(there, { to: 'peft', out: back })
    const adapter = await loadAdapter(back)
    expect(adapter.parts('linear')[0].dtype).toBe('fp16')
    expectAlike(adapter, await loadAdapter(new NodeDirectory(goldenPath('gguf', 'llama'))), 1e-3)
    const refused = convertAdapter(goldenPath('gguf', 'llama'), { to, out: new MemoryDirectory(), outDtype: 'q8_0' })
    await expect(refused).rejects.toThrow(/outDtype: q8_0 is a type of GGUF/)
  })

  it('refuses what it cannot hold by name', async () => {
    const cases =
      to === 'mlx'
        ? { tokens: /rows of tokens/, convolution: /adapted convolutions/, 'modules-to-save': /whole tensors/ }
        : { dora: /magnitudes of DoRA/, embedding: /adapted embeddings/, 'modules-to-save': /whole tensors/ }
    for (const [name, message] of Object.entries(cases)) {
      const out = new MemoryDirectory()
      await expect(convertAdapter(goldenPath('kinds', name), { to, out }), name).rejects.toThrow(message)
      expect(out.files.size).toBe(0)
    }
  })
})

it('has one table of formats, which the public API and the documentation name', async () => {
  expect(CONVERT_ADAPTER_OPTIONS.to.words).toEqual(Object.keys(FORMATS))
  const page = readFileSync('docs/formats.md', 'utf8')
  for (const name of ADAPTER_FORMATS) {
    const { ending, files, load } = formatOf(name)
    // An adapter is a file with an ending, or a folder with files of known names.
    expect([ending === undefined, files === undefined], name).toContain(true)
    expect(await load()).toEqual({
      detect: expect.any(Function),
      open: expect.any(Function),
      write: expect.any(Function),
    })
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
    const [got, wanted] = [await loadAdapter(back), await loadAdapter(new NodeDirectory(goldenPath('kinds', name)))]
    expectAlike(got, wanted, 1e-6)
    for (const { name: layer, magnitude } of wanted.parts('linear'))
      expect(got.layer(layer).magnitude).toEqual(magnitude)
  }
})

describe('.onnx_adapter', () => {
  const file = () => new Uint8Array(readFileSync(goldenPath('exchange', 'llama.onnx_adapter')))

  it('reads what ONNX Runtime wrote', async () => {
    const out = new MemoryDirectory()
    const report = await convertAdapter(goldenPath('exchange', 'llama.onnx_adapter'), { to: 'peft', out })
    expect(report).toMatchObject({ from: 'onnx-adapter', layers: 15 })
    expectAlike(await loadAdapter(out), await loadAdapter(new NodeDirectory(goldenPath('gguf', 'llama'))), 1e-6)
  })

  it('refuses files that are cut or whose offsets lead astray', async () => {
    const good = file()
    const convert = (bytes: Uint8Array) =>
      convertAdapter(new MemoryDirectory({ 'a.onnx_adapter': bytes }), { to: 'peft', out: new MemoryDirectory() })
    for (let length = 0; length < good.length; length += 211)
      await expect(convert(good.slice(0, length))).rejects.toThrow()
    for (let at = 0; at < 400; at += 4) {
      const bytes = good.slice()
      new DataView(bytes.buffer).setUint32(at, 0xfffffff0, true)
      await convert(bytes).then(
        () => {},
        (error) => expect(error.code, String(error.stack)).toBeDefined(),
      )
    }
  })
})

describe('convertAdapter', () => {
  it.each(['gguf', 'mlx', 'onnx-adapter', 'peft'] as const)(
    'tells how far it is, and leaves nothing when stopped: %s',
    async (to) => {
      const source = goldenPath('gguf', 'llama')
      const seen: string[] = []
      const onProgress = ({ done, total, name }: { done: number; total: number; name: string }) => {
        seen.push(`${done}/${total} ${name}`)
      }
      await convertAdapter(source, { to, base: source, out: new MemoryDirectory(), onProgress })
      const total = { gguf: 30, mlx: 15, 'onnx-adapter': 15, peft: 1 }[to]
      expect(seen).toHaveLength(total)
      expect(seen.at(-1)).toMatch(new RegExp(`^${total}/${total} \\S+`))
      const stop = new AbortController()
      const out = new MemoryDirectory()
      if (to === 'peft') stop.abort()
      const run = convertAdapter(source, { to, base: source, out, signal: stop.signal, onProgress: () => stop.abort() })
      await expect(run).rejects.toThrow(/abort/)
      expect(out.files.size).toBe(0)
    },
  )

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

  it('recognizes the source by its content, and names what is none', async () => {
    const bytes = new Uint8Array(readFileSync(goldenPath('exchange', 'llama.onnx_adapter')))
    const out = new MemoryDirectory()
    expect(await convertAdapter(new MemoryDirectory({ 'wrong.gguf': bytes }), { to: 'peft', out })).toMatchObject({
      from: 'onnx-adapter',
    })
    const page = new MemoryDirectory({ 'a.gguf': '<html>not found</html>' })
    const empty = new MemoryDirectory()
    await expect(convertAdapter(page, { to: 'peft', out: empty })).rejects.toThrow(/a page of HTML/)
    await expect(
      convertAdapter(new MemoryDirectory({ 'a.gguf': bytes, 'b.gguf': bytes }), { to: 'peft', out: empty }),
    ).rejects.toThrow(/several adapters/)
    await expect(convertAdapter(new MemoryDirectory({}), { to: 'peft', out: empty })).rejects.toThrow(
      /adapter_config.json/,
    )
  })

  it('leaves a file that is there already', async () => {
    const out = new MemoryDirectory({ 'adapter.onnx_adapter': 'mine' })
    await expect(convertAdapter(goldenPath('gguf', 'llama'), { to: 'onnx-adapter', out })).rejects.toThrow(
      /exists already/,
    )
    expect(new TextDecoder().decode(out.files.get('adapter.onnx_adapter'))).toBe('mine')
  })
})
