// lowrank to-plain on adapters that PEFT wrote for union-3m.

import { existsSync, readFileSync } from 'node:fs'
import { cp, readdir, writeFile } from 'node:fs/promises'
import { join } from 'node:path'
import { expect, it } from 'vitest'
import { lowrankHere } from './in-process.js'
import { MODEL, ONNX, root, scratchFolder } from './lowrank.js'

const scratch = scratchFolder()
const golden = join(root, 'tests', 'golden', 'peft')
const PISSA = join(golden, 'pissa')

it('makes plain LoRA of a PiSSA adapter, which then merges', async () => {
  const out = join(scratch, 'plain')
  const { code, stdout, stderr } = await lowrankHere('to-plain', PISSA, '--base', MODEL, '--out', out, '--json')
  expect(code, stderr).toBe(0)
  expect(JSON.parse(stdout)).toEqual({
    version: 1,
    out,
    init: 'pissa',
    layers: [{ name: 'model.layers.0.self_attn.q_proj', rank: 4 }],
  })
  expect(stderr).toContain('1 layer of rank 4')
  expect(stderr).not.toContain('warning')
  const config = JSON.parse(readFileSync(join(out, 'adapter_config.json'), 'utf8'))
  expect(config).toMatchObject({ init_lora_weights: true, r: 4, lora_alpha: 8, target_modules: ['q_proj'] })

  const refused = await lowrankHere('merge', '--base', ONNX, '--adapter', PISSA, '--out', join(scratch, 'no'))
  expect(refused.code).toBe(1)
  expect(refused.stderr).toMatch(/pissa.*lowrank to-plain/)
  expect(existsSync(join(scratch, 'no'))).toBe(false)
  const merged = await lowrankHere('merge', '--base', ONNX, '--adapter', out, '--out', join(scratch, 'model.onnx'))
  expect(merged.code, merged.stderr).toBe(0)
})

it('converts an adapter of an embedding alone, and counts it', async () => {
  const [adapter, base] = [
    join(root, 'tests', 'golden', 'inits', 'pissa-embedding-alone'),
    join(root, 'tests', 'golden', 'kinds', 'qwen2.safetensors'),
  ]
  const out = join(scratch, 'embedding')
  const { code, stdout, stderr } = await lowrankHere('to-plain', adapter, '--base', base, '--out', out, '--json')
  expect(code, stderr).toBe(0)
  expect(JSON.parse(stdout).layers).toEqual([{ name: 'model.embed_tokens', rank: 6 }])
})

it('takes the checkpoint’s file, and the adapter before training instead', async () => {
  const file = await lowrankHere(
    ...['to-plain', join(golden, 'olora'), '--base', join(MODEL, 'model.safetensors'), '--out', join(scratch, 'olora')],
  )
  expect(file.code, file.stderr).toBe(0)
  const same = join(scratch, 'same')
  const initial = await lowrankHere('to-plain', PISSA, '--initial', PISSA, '--out', same)
  expect(initial.code, initial.stderr).toBe(0)
  expect((await readdir(same)).sort()).toEqual(['adapter_config.json', 'adapter_model.safetensors'])
})

it('refuses a start that was random without the first adapter', async () => {
  const folder = join(scratch, 'niter')
  await cp(PISSA, folder, { recursive: true })
  const config = JSON.parse(readFileSync(join(PISSA, 'adapter_config.json'), 'utf8'))
  await writeFile(
    join(folder, 'adapter_config.json'),
    JSON.stringify({ ...config, init_lora_weights: 'pissa_niter_4' }),
  )
  const { code, stderr } = await lowrankHere('to-plain', folder, '--base', MODEL, '--out', join(scratch, 'niter-plain'))
  expect(code).toBe(1)
  expect(stderr).toMatch(/init pissa-niter-4 cannot be computed from the base.*--initial/)
  const same = await lowrankHere('to-plain', folder, '--initial', folder, '--out', join(scratch, 'niter-plain'))
  expect(same.code, same.stderr).toBe(0)
})

it.each([
  ['neither base nor adapter', [PISSA], 2, /--base: base and initial are both missing/],
  ['both', [PISSA, '--base', MODEL, '--initial', PISSA], 2, /--initial: not together with base/],
  ['a plain adapter', [join(golden, 'f32'), '--base', MODEL], 1, /plain LoRA already/],
  ['an .onnx base', [PISSA, '--base', ONNX], 1, /model\.onnx.*safetensors/],
  [
    'a base without the layer',
    [PISSA, '--base', join(root, 'tests/golden/kinds/gpt2.safetensors')],
    1,
    /none of its layers/,
  ],
  ['another init', [join(golden, 'loftq'), '--base', MODEL], 1, /init_lora_weights.*loftq/],
  ['no adapter', ['--base', MODEL], 2, /--adapter DIR\|ID is missing/],
])('refuses %s and leaves nothing', async (_, args, exit, message) => {
  const out = join(scratch, 'refused')
  const { code, stdout, stderr } = await lowrankHere('to-plain', ...args, '--out', out)
  expect(stderr).toMatch(message)
  expect(code).toBe(exit)
  expect(stdout).toBe('')
  expect(existsSync(out)).toBe(false)
})

it('refuses a folder that is not empty', async () => {
  const { code, stderr } = await lowrankHere('to-plain', PISSA, '--base', MODEL, '--out', golden)
  expect(code).toBe(1)
  expect(stderr).toMatch(/exists already and is not empty/)
})
