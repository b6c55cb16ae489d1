// Sessions on quantized weights, in which the caller chooses whether the inputs of products are rounded to 8 bits.

import { expect, it } from 'vitest'
import { openSession } from '../../src/api/session.js'
import { sessionModel } from '../../src/model/session-model.js'
import { AttributeProto_AttributeType, AttributeProtoSchema } from '../../src/onnx/format/gen/onnx_pb.js'
import { create } from '../../src/onnx/format/protobuf.js'
import { runtimeOf } from '../../src/onnx/runtime/onnxruntime.js'
import { ModelSession } from '../../src/run/model-session.js'
import { feedsOf, makeAdapter, maxDifference, oneThread, openModel } from './models.js'

const FOLDER = 'tests/golden/models/llama-q4'
const ROWS = [
  [3, 1, 4, 1, 5],
  [9, 2, 6, 5, 3],
]

it('computes what ONNX Runtime computes of a file with this level, near to the exact logits', async () => {
  const model = await openModel(FOLDER)
  const rewritten = await openModel(FOLDER)
  for (const { opType, attribute } of rewritten.onnx.proto.graph!.node) {
    if (opType !== 'MatMulNBits') continue
    const level = { name: 'accuracy_level', type: AttributeProto_AttributeType.INT, i: 4n }
    attribute.push(create(AttributeProtoSchema, level))
  }
  const { onnx } = rewritten
  const plain = await runtimeOf(oneThread).createSession(await sessionModel(onnx, onnx.proto))
  const session = await ModelSession.open(model, { accuracyLevel: 4 })
  const exact = await ModelSession.open(model, { accuracyLevel: 0 })
  const unset = await ModelSession.open(model)
  const feeds = feedsOf(model, ROWS)
  const { logits } = await session.run(feeds)
  expect(maxDifference(logits, (await plain.run(feeds)).logits)).toBeLessThan(1e-5)
  const largest = (logits.data as Float32Array).reduce((max, value) => Math.max(max, Math.abs(value)), 0)
  const rounded = maxDifference(logits, (await exact.run(feeds)).logits) / largest
  expect(rounded).toBeGreaterThan(1e-4)
  expect(rounded).toBeLessThan(0.05)
  expect(maxDifference((await unset.run(feeds)).logits, (await exact.run(feeds)).logits)).toBe(0)
  for (const opened of [plain, session, exact, unset]) await opened.dispose()
  for (const opened of [model, rewritten]) await opened.close()
})

it('gives each row of a batch what it has alone, with an adapter for each', async () => {
  const model = await openModel(FOLDER)
  const adapters = { a: makeAdapter(model, /[qv]_proj$/, { seed: 1 }), b: makeAdapter(model, /_proj$/, { seed: 2 }) }
  const session = await ModelSession.open(model, { adapters, accuracyLevel: 4 })
  const { logits } = await session.run(feedsOf(model, ROWS), { adapter: ['a', 'b'] })
  for (const [i, adapter] of ['a', 'b'].entries()) {
    const alone = (await session.run(feedsOf(model, [ROWS[i]]), { adapter })).logits
    const size = alone.data.length
    const row = (logits.data as Float32Array).subarray(i * size, (i + 1) * size)
    expect(maxDifference({ ...alone, data: row }, alone)).toBeLessThan(1e-5)
  }
  await session.dispose()
  await model.close()
})

it('is 0 or 4', async () => {
  const model = await openModel(FOLDER)
  await expect(openSession(model, { accuracyLevel: 1 as never })).rejects.toMatchObject({ code: 'CONFIG' })
  await model.close()
})

it('is refused before opening where no graph has products to round, and says what to load', async () => {
  const model = await openModel('tests/golden/models/llama-optimum')
  await expect(openSession(model, { accuracyLevel: 4 })).rejects.toMatchObject({
    code: 'UNSUPPORTED',
    where: 'accuracyLevel',
    got: expect.stringContaining('model.onnx'),
  })
  const session = await openSession(model, { accuracyLevel: 0 })
  await session.dispose()
  await model.close()
})
