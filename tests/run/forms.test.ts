// A running text continues unchanged while its session opens the graph in another form.

import { loadAdapter, loadModel, openSession } from 'lowrank'
import { beforeAll, expect, it } from 'vitest'
import { enginesHere } from '../engines-here.js'

beforeAll(enginesHere)

it('goes on with its text if a run that fails makes the session try its plain form', async () => {
  const model = await loadModel('models/union-3m')
  const adapter = await loadAdapter('tests/golden/peft/f32')
  const session = await openSession(model, { on: {} })
  const options = { maxNewTokens: 60, temperature: 0 }
  const { text: alone } = await session.generate('And the people', options)
  let pieces = 0
  let failed: Promise<unknown> | undefined
  const begin = async () => {
    await session.add('peft', adapter)
    const input_ids = { type: 'int64', data: BigInt64Array.of(1n << 40n), dims: [1, 1] } as const
    await session.run({ input_ids }, { adapter: null })
  }
  const { text } = await session.generate('And the people', {
    ...options,
    on: {
      text() {
        if (pieces++ === 2)
          failed = begin().then(
            () => undefined,
            (error: unknown) => error,
          )
      },
    },
  })
  expect(String(await failed)).toMatch(/ONNX Runtime|RuntimeError/)
  expect(pieces).toBeGreaterThan(5)
  expect(text).toBe(alone)
  await session.dispose()
  await model.close()
})
