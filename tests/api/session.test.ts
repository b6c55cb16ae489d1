// openSession as callers use it: with a real worker, ONNX Runtime's tensors, and text in pieces.

import { fileURLToPath } from 'node:url'
import { type AdapterSession, ConfigError, loadAdapter, MismatchError, openSession, StateError } from 'lowrank'
import * as ort from 'onnxruntime-node'
import { afterAll, beforeAll, describe, expect, it } from 'vitest'

const root = fileURLToPath(new URL('../..', import.meta.url))
const UNION = `${root}models/union-3m`
const PEFT = `${root}tests/golden/peft/f32`

let session: AdapterSession
beforeAll(async () => {
  session = await openSession(UNION, { adapters: { peft: PEFT }, device: 'cpu', threads: 1 })
})
afterAll(() => session.dispose())

const idsOf = (text: string) => {
  const ids = session.model.tokenizer!.encode(text)
  return { data: BigInt64Array.from(ids, BigInt), dims: [1, ids.length] }
}

describe('run', () => {
  it('takes the tensors of ONNX Runtime, although the session is in a worker', async () => {
    const { data, dims } = idsOf('And the people')
    const plain = await session.run({ input_ids: { type: 'int64', data, dims } }, { outputNames: ['logits'] })
    const theirs = new ort.Tensor('int64', data, dims)
    const own = await session.run({ input_ids: theirs as never }, { adapter: null, outputNames: ['logits'] })
    expect(own.logits.dims).toEqual(plain.logits.dims)
    expect(own.logits.data).toEqual(plain.logits.data)
    const adapted = await session.run({ input_ids: theirs as never }, { adapter: 'peft', outputNames: ['logits'] })
    expect(adapted.logits.data).not.toEqual(plain.logits.data)
  })

  it('names the input or output that was meant', async () => {
    const { data, dims } = idsOf('And')
    const tensor = { type: 'int64' as const, data, dims }
    await expect(session.run({ inputs_ids: tensor })).rejects.toThrow(/"inputs_ids": .*Did you mean input_ids\?/)
    await expect(session.run({ inputs_ids: tensor })).rejects.toThrow(MismatchError)
    await expect(session.run({ input_ids: tensor }, { outputNames: ['logit'] })).rejects.toThrow(
      /Did you mean logits\?/,
    )
    await expect(session.run({ input_ids: { ...tensor, type: 'long' as never } })).rejects.toThrow(ConfigError)
    await expect(session.run({ input_ids: data as never })).rejects.toThrow(/input input_ids: type: not valid/)
  })
})

describe('texts', () => {
  const options = { adapter: 'peft', maxNewTokens: 16, temperature: 1, seed: 5 }

  it('stream gives the pieces of what generate writes, and its result', async () => {
    const result = await session.generate('And the people', options)
    const pieces = session.stream('And the people', options)
    const texts: string[] = []
    let step = await pieces.next()
    for (; !step.done; step = await pieces.next()) texts.push(step.value)
    expect(texts.length).toBeGreaterThan(3)
    expect(texts.join('')).toBe(result.text)
    expect({ ...step.value, seconds: 0 }).toEqual({ ...result, seconds: 0 })
    expect(result.seed).toBe(5)
  })

  it('leaving the loop ends the text', async () => {
    for await (const piece of session.stream('And the people', { maxNewTokens: 200 })) {
      expect(piece).not.toBe('')
      break
    }
    expect((await session.generate('And', { maxNewTokens: 1 })).tokens).toBe(1)
  })

  it('a fresh seed draws another text, and the one that the result tells draws the same', async () => {
    const drawn = { maxNewTokens: 12, temperature: 1 }
    const [one, other] = [await session.generate('And', drawn), await session.generate('And', drawn)]
    expect(one.text).not.toBe(other.text)
    expect((await session.generate('And', { ...drawn, seed: other.seed })).text).toBe(other.text)
  })
})

it('adapters come and go', async () => {
  await session.add('second', await loadAdapter(PEFT))
  expect(session.adapters).toEqual(['peft', 'second'])
  await session.remove('second')
  expect(session.adapters).toEqual(['peft'])
  await expect(session.remove('second')).rejects.toThrow(MismatchError)
  await expect(session.generate('And', { adapter: 'pef' })).rejects.toThrow(/Did you mean peft\?/)
})

it('a session that opened its model closes it too', async () => {
  const own = await openSession(UNION)
  await own.dispose()
  await expect(own.generate('And')).rejects.toThrow(StateError)
  const { model } = own
  await expect(model.onnx.readTensor(model.onnx.proto.graph!.initializer[0])).rejects.toThrow()
})

it('says what a device is that the runtime does not have', async () => {
  await expect(openSession(UNION, { device: 'abacus' })).rejects.toMatchObject({ code: 'UNSUPPORTED' })
})

it('allowMissing leaves out what the export dropped, and on.warning hears its name at each adapter', async () => {
  const [folder, layers] = [`${root}tests/golden/fused/bert-attention`, `${root}tests/golden/fused/bert/lora`]
  const adapter = await loadAdapter(layers)
  const square = (rows: number, columns: number) => ({
    data: new Float32Array(rows * columns),
    shape: [rows, columns] as const,
  })
  adapter.addFactors('pooler.dense', square(3, 16), square(16, 3))
  await expect(openSession(folder, { adapters: { adapter } })).rejects.toThrow(/no module for pooler\.dense/)
  const heard: string[] = []
  const warning = (message: string) => void heard.push(message)
  const bert = await openSession(folder, {
    adapters: { adapter, layers },
    allowMissing: true,
    on: { warning },
    threads: 1,
  })
  await bert.add('again', adapter)
  expect(heard).toEqual(
    ['adapter', 'again'].map(
      (name) => `adapter ${name}: left out, because the model has no module for it: pooler.dense`,
    ),
  )
  await bert.dispose()
})
