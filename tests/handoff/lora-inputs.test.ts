// Graphs with inputs for adapters have the bytes with which scripts/golden/lora_inputs.py tested ONNX Runtime's
// LoraAdapter, and give its logits.

import { createHash } from 'node:crypto'
import { readFileSync } from 'node:fs'
import { MemoryDirectory, openSession } from 'lowrank'
import { addLoraInputs } from 'lowrank/handoff'
import { beforeAll, expect, it } from 'vitest'
import { enginesHere } from '../engines-here.js'
import { goldenPath } from '../golden.js'

const MODEL = 'models/union-3m'

beforeAll(enginesHere)

const golden = JSON.parse(readFileSync(goldenPath('lora-inputs.json'), 'utf8'))
const int64 = (data: readonly number[]) =>
  ({ type: 'int64', data: BigInt64Array.from(data, BigInt), dims: [1, data.length] }) as const
const ids = [0, 35, 274, 630, 376]
const feeds = { input_ids: int64(ids), attention_mask: int64(ids.map(() => 1)) }

it('writes the graph that ONNX Runtime was tested with, and the files beside it', async () => {
  const out = new MemoryDirectory()
  const { inputs, modules, graph } = await addLoraInputs(MODEL, { out })
  expect(graph).toBe('onnx/model.onnx')
  expect(modules).toHaveLength(42)
  expect(inputs.slice(0, 2).map((name) => name.replace(/.*\.(lora)/, '$1'))).toEqual(['lora_A.weight', 'lora_B.weight'])
  expect(createHash('sha256').update(out.files.get(graph)!).digest('hex')).toBe(golden.sha256)
  expect([...out.files.keys()]).toEqual(expect.arrayContaining(['config.json', 'tokenizer.json']))
})

it('gives the base where no adapter is fed, at a fixed rank too', async () => {
  const out = new MemoryDirectory()
  await addLoraInputs(MODEL, { out, rank: 4, targetModules: ['q_proj'] })
  const [own, base] = await Promise.all([openSession(out), openSession(MODEL)])
  const [a, b] = await Promise.all([own.run(feeds), base.run(feeds)])
  expect(a.logits.data).toEqual(b.logits.data)
  await Promise.all([own.dispose(), base.dispose()])
})

it.each(['f32', 'rslora'])('is to ONNX Runtime what a session is, with %s', async (name) => {
  const session = await openSession(MODEL, { adapters: { [name]: goldenPath('peft', name) } })
  const { logits } = await session.run(feeds, { adapter: name })
  const last = (logits.data as Float32Array).slice(-logits.dims.at(-1)!)
  golden[name].forEach((value: number, i: number) => void expect(Math.abs(value - last[i])).toBeLessThan(1e-4))
  await session.dispose()
})

it('refuses modules that are not there', async () => {
  const out = new MemoryDirectory()
  await expect(addLoraInputs(MODEL, { out, targetModules: ['q_pro'] })).rejects.toThrow('q_proj')
})
