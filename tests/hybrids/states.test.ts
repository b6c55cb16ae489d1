// The states of a hybrid come back whole in each step. With the sizes of a real model, the states of the step before
// have to be freed at once: the garbage collector would let many of them pile up.

import * as ort from 'onnxruntime-node'
import { expect, it } from 'vitest'
import type { OrtModule } from '../../src/onnx/runtime/onnxruntime.js'
import { ModelSession } from '../../src/run/model-session.js'
import { openModel } from '../run/models.js'

/** As large as the outputs that a step of a real model gives. */
const FLOATS = 2 ** 19

/** Moves each output of a run into a large array, and records the arrays of each run. */
function withLargeOutputs(): { module: OrtModule; outputs: ArrayBufferLike[][] } {
  const outputs: ArrayBufferLike[][] = []
  const create: OrtModule['InferenceSession']['create'] = async (model, options = {}) => {
    const session = await ort.InferenceSession.create(model as unknown as string, { ...options, intraOpNumThreads: 1 })
    return {
      inputNames: session.inputNames,
      outputNames: session.outputNames,
      run: async (feeds, names) => {
        const results = Object.entries(await session.run(feeds as never, names as string[])).map(([name, tensor]) => {
          const large = new Float32Array(FLOATS)
          large.set(tensor.data as Float32Array)
          return [
            name,
            { ...tensor, type: tensor.type, dims: tensor.dims, data: large.subarray(0, tensor.size) },
          ] as const
        })
        outputs.push(results.map(([, { data }]) => data.buffer))
        return Object.fromEntries(results) as never
      },
      release: () => session.release(),
    }
  }
  return { module: { ...ort, InferenceSession: { create } } as never, outputs }
}

it('frees the logits of each step, the states that it read, and the last states when the text ends', async () => {
  const ids = [5, 6, 7, 8, 9]
  const options = { temperature: 0, maxNewTokens: 6 } as const
  const write = async (module?: OrtModule) => {
    const [texts, hybrid] = [
      await openModel('models/union-3m'),
      await openModel('tests/golden/hybrids/granite_h/mobius', module && { module }),
    ]
    const session = await ModelSession.open({ ...hybrid, tokenizer: texts.tokenizer, eosTokenIds: [] }, { threads: 1 })
    const { tokenIds } = await session.generate({ ids }, options)
    await session.dispose()
    for (const model of [texts, hybrid]) await model.close()
    return tokenIds
  }
  const { module, outputs } = withLargeOutputs()
  expect(await write(module)).toEqual(await write())
  expect(outputs).toHaveLength(6)
  const isFreed = outputs.map((buffers) => buffers.filter(({ byteLength }) => byteLength === 0).length)
  const all = outputs[0].length
  expect(all).toBe(5)
  expect(isFreed).toEqual(outputs.map(() => all))
})
