// Mistakes that readers of the documentation make: each message says what to do.

import { afterAll, beforeAll, expect, it } from 'vitest'
import {
  type AdapterSession,
  loadAdapter,
  loadModel,
  type Model,
  merge,
  openSession,
  train,
} from '../../src/api/node.js'
import { oneThread } from '../run/models.js'

const FOLDER = 'models/union-3m'
const ADAPTER = 'tests/golden/peft/f32'
const data = [{ text: 'Call me Ishmael.' }]
let model: Model
let session: AdapterSession

beforeAll(async () => {
  model = await loadModel(FOLDER, { runtime: { module: oneThread } })
  session = await openSession(model)
})

afterAll(async () => {
  await session.dispose()
  await model.close()
})

/** Returns the message of the error that `action` throws. */
async function messageOf(action: () => PromiseLike<unknown>): Promise<string> {
  try {
    await action()
  } catch (error) {
    return (error as Error).message
  }
  return 'no error'
}

it.each<[string, () => PromiseLike<unknown>, RegExp]>([
  ['texts without records', () => train({ model, data: ['Call me Ishmael.'] }), /give a record: \{ text: '…' \}$/],
  [
    'a missing file of data',
    () => train({ model, data: 'chat.jsonl' }),
    /no such file or folder\. Relative paths start in /,
  ],
  [
    'nothing among records',
    () => train({ model, data: [undefined] as never }),
    /^data\[0\]: not a valid record; .* got nothing\./,
  ],
  ['a setting of another task', () => train({ model, data, taskOptions: { margin: 1 } }), /There are none$/],
  [
    'dtype for openSession',
    () => openSession(FOLDER, { dtype: 'q4' } as never),
    /await loadModel\(source, \{ dtype \}\)/,
  ],
  [
    'an adapter that is not awaited',
    () => openSession(model, { adapters: { mine: loadAdapter(ADAPTER) as never } }),
    /^adapters\.mine: not valid; .* got a promise: write await before it$/,
  ],
  [
    'adapters that are not awaited',
    () => openSession(model, { adapters: Promise.resolve({}) as never }),
    /^adapters: not valid; .* got a promise/,
  ],
  [
    'one adapter without a name',
    async () => openSession(model, { adapters: (await loadAdapter(ADAPTER)) as never }),
    /^adapters: not valid; expected an object of names/,
  ],
  [
    'dims of other data',
    () => session.run({ input_ids: { type: 'int64', data: BigInt64Array.of(1n), dims: [1, 2] } }),
    /^input input_ids: data: .* expected 2, the product of \[1, 2\], got 1$/,
  ],
  [
    'data of another type',
    () => session.run({ input_ids: { type: 'int64', data: Int32Array.of(1), dims: [1, 1] } }),
    /^input input_ids: data: .* expected BigInt64Array, got Int32Array$/,
  ],
  [
    'the adapter of another model',
    () =>
      merge({
        base: 'tests/golden/text-classification/encoder',
        adapters: ADAPTER,
        out: 'out/mistakes/never',
        format: 'onnx',
      }),
    /None of the adapter's layers is in this model/,
  ],
  [
    'a config in place of a checkpoint',
    () => merge({ base: `${FOLDER}/config.json`, adapters: ADAPTER, out: 'out/mistakes/never' }),
    /Give the folder of the model, a \.safetensors file/,
  ],
])('%s', async (_, action, message) => {
  expect(await messageOf(action)).toMatch(message)
})
