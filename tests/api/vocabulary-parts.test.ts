// How parts of an adapter meet at the vocabulary: LoRA, DoRA, saved tensors, trained tokens and biases on output layer,
// embedding and ordinary layers, tied and untied, in everything that reads adapters, over weights of 32 and 4 bits.
// PEFT's numbers: scripts/golden/vocabulary_parts.py.

import { readFileSync } from 'node:fs'
import { afterAll, beforeAll, describe, expect, it } from 'vitest'
import {
  type LoraAdapter,
  loadAdapter,
  loadModel,
  MemoryDirectory,
  type Model,
  type RuntimeTensor,
} from '../../src/api/node.js'
import { MemorySource } from '../../src/core/base/bytes.js'
import { parseSafetensorsHeader, readTensorF32 } from '../../src/files/safetensors.js'
import { loadOnnx } from '../../src/onnx/format/model.js'
import { ModelSession } from '../../src/run/model-session.js'
import { createHandler } from '../../src/serve/handler.js'
import { evaluateAdapters } from '../../src/train/evaluate/evaluate-adapters.js'
import { train } from '../../src/train/train.js'
import { goldenPath } from '../golden.js'
import { mergeOnnx } from '../merge/toolkit.js'
import { directoryOf, feedsOf, inThread, maxDifference } from '../run/models.js'
import { some } from '../thorough.js'

const SUITE = 'vocabulary-parts'
interface Golden {
  readonly inputIds: readonly (readonly number[])[]
  readonly cells: Readonly<Record<string, { readonly loss: number; readonly q4Loss: number }>>
}
const { inputIds, cells }: Golden = JSON.parse(readFileSync(goldenPath(SUITE, 'golden.json'), 'utf8'))
const file = await parseSafetensorsHeader(new MemorySource(readFileSync(goldenPath(SUITE, 'logits.safetensors'))))

/** Reads PEFT's logits at the last token of each row. */
const logitsOf = async (base: string, cell: string, dtype: Dtype) => {
  return (await readTensorF32(file, `${base}/${cell}${dtype === 'q4' ? '/q4' : ''}`)).data
}

const headers = { 'content-type': 'application/json' }
const DTYPES = ['fp32', 'q4'] as const
type Dtype = (typeof DTYPES)[number]
const TEXTS = inputIds.map((row) => row.map((id) => `w${id}`).join(' '))
const data = TEXTS.map((text) => ({ text }))

/** Parts that lowrank does not train; everything else about these adapters works. */
const NOT_TRAINED: readonly [RegExp, RegExp][] = [
  [/DoRA.*embedding lora/, /DoRA of an embedding/],
  [/^tied\/head lora, embedding rows/, /rows of lm_head cannot be trained together with a layer of LoRA/],
]

/** Combinations that run, but are not merged. */
const NOT_MERGED: readonly [RegExp, RegExp][] = [
  [/^tied\/head lora, embedding rows/, /rows .* and a layer on one tensor cannot be merged together/],
]

function lastOf({ data, dims: [rows, tokens, vocabulary] }: RuntimeTensor): Float32Array {
  const values = data as Float32Array
  return Float32Array.from({ length: rows * vocabulary }, (_, i) => {
    return values[((Math.floor(i / vocabulary) + 1) * tokens - 1) * vocabulary + (i % vocabulary)]
  })
}

describe.each(['untied', 'tied'])('over %s embeddings', (base) => {
  const names = Object.keys(cells).flatMap((key) => (key.startsWith(`${base}/`) ? [key.slice(base.length + 1)] : []))
  const adapters = new Map<string, LoraAdapter>()
  const models = new Map<Dtype, Model>()
  beforeAll(async () => {
    for (const dtype of DTYPES) {
      const model = await loadModel(directoryOf(`tests/golden/${SUITE}/${base}`), { dtype, runtime: inThread })
      models.set(dtype, model)
    }
    for (const name of names)
      adapters.set(name, await loadAdapter(directoryOf(`tests/golden/${SUITE}/${base}/${name}`)))
  })
  afterAll(async () => {
    for (const model of models.values()) await model.close()
  })

  describe.each(DTYPES)('of %s', (dtype) => {
    // Both types together try two thirds of the names.
    const tried = some(dtype === 'q4' ? [...names.slice(1), names[0]] : names)

    it.each(tried)('%s: a session, and what a merge writes, give PEFT’s logits', async (name) => {
      const wanted = await logitsOf(base, name, dtype)
      const model = models.get(dtype)!
      const feeds = feedsOf(model, inputIds as number[][])
      const session = await ModelSession.open(model, { adapters: { own: adapters.get(name)! } })
      expect(maxDifference(lastOf((await session.run(feeds, { adapter: 'own' })).logits), wanted)).toBeLessThan(2e-5)
      await session.dispose()
      const out = new MemoryDirectory()
      const refusal = NOT_MERGED.find(([cell]) => cell.test(`${base}/${name}`))?.[1]
      if (refusal !== undefined) {
        await expect(mergeOnnx(model.onnx, adapters.get(name)!, out)).rejects.toThrow(refusal)
        return
      }
      await mergeOnnx(model.onnx, adapters.get(name)!, out)
      const onnx = await loadOnnx(out, model.onnx.fileName)
      const merged = await ModelSession.open({ onnx, runtime: inThread })
      expect(maxDifference(lastOf((await merged.run(feeds)).logits), wanted)).toBeLessThan(2e-5)
      await merged.dispose()
      await onnx.close()
    })

    it('one server of all adapters gives PEFT’s likeliest token, as likely', async () => {
      const model = models.get(dtype)!
      // /metrics lists the names, with commas between them.
      const served = Object.fromEntries(names.map((name) => [name.replaceAll(',', ''), adapters.get(name)!]))
      const handler = await createHandler({ model, servedModelName: 'base', adapters: served })
      for (const name of names) {
        const body = { model: name.replaceAll(',', ''), prompt: TEXTS[0], max_tokens: 1, temperature: 0, logprobs: 1 }
        const request = new Request('http://localhost/v1/completions', {
          method: 'POST',
          headers,
          body: JSON.stringify(body),
        })
        const answer = await (await handler(request)).json()
        expect(answer.error).toBeUndefined()
        const logits = (await logitsOf(base, name, dtype)).subarray(0, 64)
        const sum = logits.reduce((total, value) => total + Math.exp(value), 0)
        const best = logits.indexOf(Math.max(...logits))
        expect([name, answer.choices?.[0].logprobs.tokens]).toEqual([name, [`w${best}`]])
        expect(answer.choices[0].logprobs.token_logprobs[0]).toBeCloseTo(logits[best] - Math.log(sum), 4)
      }
      await handler.close()
    })

    it('an evaluation of all adapters gives PEFT’s losses', async () => {
      const own = Object.fromEntries(
        names.flatMap((name) => (isTrained(`${base}/${name}`) ? [[name, adapters.get(name)!]] : [])),
      )
      const report = await evaluateAdapters(models.get(dtype)!, own, data, { threads: 1, resamples: 1 })
      for (const { name, metrics } of report.models) {
        if (name === null) continue
        expect([name, metrics.loss.value]).toEqual([name, expect.closeTo(lossOf(name), 4)])
      }
    })

    it.each(tried)('%s: training goes on from PEFT’s loss, and keeps what it does not train', async (name) => {
      const adapter = await loadAdapter(directoryOf(`tests/golden/${SUITE}/${base}/${name}`))
      const options = {
        model: models.get(dtype)!,
        data,
        adapter,
        batchSize: 2,
        maxSteps: 2,
        threads: 1,
        learningRate: 1e-2,
      }
      const refusal = NOT_TRAINED.find(([cell]) => cell.test(`${base}/${name}`))?.[1]
      if (refusal !== undefined) {
        await expect(train(options)).rejects.toThrow(refusal)
        return
      }
      const losses: number[] = []
      await train({ ...options, on: { step: ({ loss }) => void losses.push(loss) } })
      expect(losses[0]).toBeCloseTo(lossOf(name), 4)
      const before = adapters.get(name)!
      for (const part of adapter.parts('replacement')) {
        if (!part.isTrained) expect(part.data).toEqual(before.get(part.name, 'replacement')!.data)
      }
    })

    const lossOf = (name: string) => cells[`${base}/${name}`][dtype === 'q4' ? 'q4Loss' : 'loss']
  })
})

const isTrained = (cell: string) => !NOT_TRAINED.some(([refused]) => refused.test(cell))
