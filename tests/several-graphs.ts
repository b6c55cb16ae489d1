// The golden models of tests/golden/graphs, and runs of their graphs in plain ONNX Runtime.

import { readFileSync } from 'node:fs'
import path from 'node:path'
import { InferenceSession, Tensor } from 'onnxruntime-node'
import type { Feeds } from '../src/api/node.js'
import { NodeDirectory } from '../src/files/io/node/files.js'
import { parseSafetensorsHeader, readTensorF32 } from '../src/files/safetensors.js'
import { goldenPath } from './golden.js'

export interface ExpectedGraphs {
  readonly text: string
  /** The input tokens, or null for a model of sounds. */
  readonly inputIds: number[] | null
  /** The input tokens of the decoder, for an encoder-decoder. */
  readonly decoderIds: number[] | null
  /** The tokens that follow greedily. */
  readonly baseIds: number[]
  readonly adaptedIds: number[]
}

export function graphsFolder(name: string): string {
  return goldenPath('graphs', name)
}

export function expectedGraphs(name: string): ExpectedGraphs {
  return JSON.parse(readFileSync(path.join(graphsFolder(name), 'golden', 'expected.json'), 'utf8'))
}

/** PEFT's logits of the last two tokens as `base` and `adapted`, and the input of models that do not read text. */
export async function graphsNumbers(name: string): Promise<Map<string, Float32Array>> {
  const directory = new NodeDirectory(graphsFolder(name))
  const file = await parseSafetensorsHeader(await directory.open('golden/logits.safetensors'))
  const numbers = new Map<string, Float32Array>()
  for (const key of file.tensors.keys()) numbers.set(key, Float32Array.from((await readTensorF32(file, key)).data))
  await file.source.close()
  return numbers
}

export const int64 = (values: readonly number[], dims: readonly number[] = [1, values.length]) => ({
  type: 'int64' as const,
  data: BigInt64Array.from(values, BigInt),
  dims,
})

/** The inputs of the first graph, which is the encoder or the only graph. */
export async function firstFeeds(name: string): Promise<Feeds> {
  const { inputIds } = expectedGraphs(name)
  if (inputIds !== null) return { input_ids: int64(inputIds), attention_mask: int64(inputIds.map(() => 1)) }
  const data = (await graphsNumbers(name)).get('input_features')!
  return { input_features: { type: 'float32', data, dims: [1, 4, 3000] } }
}

type Outputs = Record<string, { data: unknown; dims: readonly number[] }>

/**
 * Runs a folder's encoder and decoder in stock ONNX Runtime: the logits of the last two tokens, whole and with a cache.
 */
export async function stockLogits(
  folder: string,
  name: string,
): Promise<{ whole: Float32Array; cached: Float32Array }> {
  const { decoderIds } = expectedGraphs(name)
  const open = (file: string) => InferenceSession.create(path.join(folder, 'onnx', file))
  const encoder = await open('encoder_model.onnx')
  const decoder = await open('decoder_model_merged.onnx')
  const given = await firstFeeds(name)
  const tensor = ({ type, data, dims }: Feeds[string]) => new Tensor(type as 'float32', data as Float32Array, dims)
  const feeds = Object.fromEntries(encoder.inputNames.map((input) => [input, tensor(given[input])]))
  const states = Object.values(await encoder.run(feeds))[0]
  const run = async (ids: readonly number[], past: Outputs | undefined): Promise<Outputs> => {
    const all: Record<string, Tensor> = {}
    for (const input of decoder.inputNames) {
      if (input === 'input_ids') all[input] = tensor(int64(ids))
      else if (input === 'encoder_hidden_states') all[input] = states as Tensor
      else if (input === 'encoder_attention_mask')
        all[input] = tensor(int64(Array(states.dims[1]).fill(1), [1, states.dims[1]]))
      else if (input === 'use_cache_branch') all[input] = new Tensor('bool', [past !== undefined], [1])
      else
        all[input] =
          (past?.[input.replace('past_key_values', 'present')] as Tensor | undefined) ??
          new Tensor('float32', new Float32Array(0), [1, 2, 0, 8])
    }
    return (await decoder.run(all)) as unknown as Outputs
  }
  const whole = await run(decoderIds!, undefined)
  const cached = await run(decoderIds!.slice(-1), await run(decoderIds!.slice(0, -1), undefined))
  await encoder.release()
  await decoder.release()
  return { whole: lastRows(whole.logits, 2), cached: lastRows(cached.logits, 1) }
}

export function lastRows({ data, dims }: { data: unknown; dims: readonly number[] }, count: number): Float32Array {
  return (data as Float32Array).slice(-count * dims[dims.length - 1])
}

/** Returns the largest difference, relative to the largest true value. */
export function worst(values: Float32Array, truth: Float32Array): number {
  if (values.length !== truth.length) return Number.POSITIVE_INFINITY
  let [difference, largest] = [0, 0]
  values.forEach((value, i) => {
    difference = Math.max(difference, Math.abs(value - truth[i]))
    largest = Math.max(largest, Math.abs(truth[i]))
  })
  return difference / largest
}
