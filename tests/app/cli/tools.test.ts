// lowrank combine and resize on adapters that PEFT wrote.

import { existsSync, readFileSync } from 'node:fs'
import { join } from 'node:path'
import { expect, it } from 'vitest'
import { lowrankHere } from './in-process.js'
import { root, scratchFolder } from './lowrank.js'

const scratch = scratchFolder()
const combined = join(root, 'tests', 'golden', 'combine')
const [FIRST, WIDE] = ['first', 'wide'].map((name) => join(combined, name))

it('combines adapters of different ranks, and tells what is lost', async () => {
  const out = join(scratch, 'combined')
  const args = ['--adapter', FIRST, '--adapter', WIDE, '--weight', '-0.5', '--rank', '4', '--out', out, '--json']
  const { code, stdout, stderr } = await lowrankHere('combine', ...args, '--out-dtype', 'fp16')
  expect(code, stderr).toBe(0)
  const document = JSON.parse(stdout)
  expect(document).toMatchObject({ version: 1, out, warnings: [] })
  expect(document.layers).toHaveLength(9)
  expect(document.error).toBeGreaterThan(0)
  expect(document.layers[0]).toMatchObject({ fromRank: expect.any(Number), rank: expect.any(Number) })
  const config = JSON.parse(readFileSync(join(out, 'adapter_config.json'), 'utf8'))
  expect(config).toMatchObject({ use_rslora: false, r: config.lora_alpha })
  const inspected = await lowrankHere('inspect', out, '--json')
  expect(JSON.parse(inspected.stdout).layers[0].dtype).toBe('fp16')
  const again = await lowrankHere('combine', '--adapter', FIRST, '--out', out)
  expect(again.code).toBe(1)
  expect(again.stderr).toMatch(/exists already/)
})

it('resizes, with a table for people', async () => {
  const out = join(scratch, 'resized')
  const { code, stdout, stderr } = await lowrankHere('resize', FIRST, '--energy', '0.8', '--rank', '2', '--out', out)
  expect(code, stderr).toBe(0)
  expect(stdout).toMatch(/layer +rank before +rank after +‖ΔW‖ +lost/)
  expect(stderr).toMatch(/Wrote .*resized.*6 layers of (rank|ranks).*% lost/)
})

it('converts to a file for llama.cpp', async () => {
  const base = join(root, 'tests', 'golden', 'gguf', 'llama')
  const there = join(scratch, 'adapter.gguf')
  const first = await lowrankHere(
    'convert',
    base,
    '--to',
    'gguf',
    '--base',
    base,
    '--out',
    there,
    '--out-dtype',
    'fp16',
    '--json',
  )
  expect(first.code, first.stderr).toBe(0)
  expect(JSON.parse(first.stdout)).toMatchObject({ version: 1, from: 'peft', to: 'gguf', out: there, layers: 15 })
  const back = await lowrankHere('convert', there, '--to', 'peft', '--out', join(scratch, 'back'))
  expect([back.code, back.stderr]).toEqual([1, expect.stringMatching(/adapter.gguf: cannot be read as an adapter/)])
  const again = await lowrankHere('convert', base, '--to', 'gguf', '--base', base, '--out', there)
  expect(again.stderr).toMatch(/exists already/)
  const unknown = await lowrankHere('convert', base, '--to', 'ggml', '--out', there)
  expect(unknown.code).toBe(2)
})

it('refuses to combine a DoRA adapter, and says what to do', async () => {
  const dora = join(root, 'tests', 'golden', 'kinds', 'dora')
  const { code, stderr } = await lowrankHere('combine', dora, dora, '--out', join(scratch, 'folded'))
  expect(code).toBe(1)
  expect(stderr).toMatch(/dora: DoRA adapters cannot be combined.*mergekit-extract-lora/s)
})

it.each([
  [
    ['combine', '--adapter', FIRST, '--adapter', WIDE, '--combination-type', 'linear'],
    1,
    /--rank|rank 3.*3, 4|same rank/,
  ],
  [
    ['combine', '--adapter', FIRST, '--combination-type', 'ties'],
    2,
    /one of exact, linear; got 'ties'\. TIES .* exact adds/,
  ],
  [['combine', '--adapter', FIRST, '--density', '2'], 2, /no option --density\. TIES and DARE are gone: exact adds/],
  [['combine', '--adapter', FIRST, '--combination-type', 'cat'], 2, /leave it out: exact is the whole sum/],
  [['resize', FIRST], 2, /--rank: missing/],
  [['resize', FIRST, '--rank', '0'], 2, /--rank/],
  [['resize', join(root, 'tests/golden/peft/pissa'), '--rank', '1'], 1, /pissa.*lowrank to-plain/],
])('refuses %j and leaves nothing', async (args, expected, message) => {
  const out = join(scratch, 'refused')
  const { code, stderr } = await lowrankHere(...args, '--out', out)
  expect(code).toBe(expected)
  expect(stderr).toMatch(message)
  expect(existsSync(out)).toBe(false)
})

it('shows how adapters differ, as a table and as a document', async () => {
  const { code, stdout, stderr } = await lowrankHere('diff', '--a', FIRST, '--b', WIDE)
  expect(code, stderr).toBe(0)
  expect(stdout).toMatch(/layer +‖ΔA‖ +‖ΔB‖ +cosine +‖ΔB − ΔA‖\/‖ΔA‖/)
  expect(stderr).toMatch(/only in b: .*embed_tokens/)
  const document = await lowrankHere('diff', '--a', FIRST, '--b', WIDE, '--json')
  expect(JSON.parse(document.stdout)).toMatchObject({ version: 1, a: FIRST, b: WIDE, layers: expect.any(Array) })
})
