// Runs the golden model of texts and pictures, which has three graphs.

import { readFileSync } from 'node:fs'
import path from 'node:path'
import { InferenceSession, Tensor } from 'onnxruntime-node'
import type { Feeds, RuntimeTensor } from '../src/api/node.js'
import { graphsFolder, graphsNumbers, int64, lastRows } from './several-graphs.js'

type Graph = 'vision_encoder' | 'embed_tokens' | 'decoder'

/** Runs one of the graphs. */
export type RunGraph = (graph: Graph, feeds: Feeds) => Promise<Record<string, RuntimeTensor>>

export interface ExpectedPicture {
  readonly imageToken: number
  readonly inputIds: number[]
  readonly baseIds: number[]
  readonly adaptedIds: number[]
}

export function expectedPicture(): ExpectedPicture {
  return JSON.parse(readFileSync(path.join(graphsFolder('llava'), 'golden', 'expected.json'), 'utf8'))
}

/** The pixels of the golden picture. */
export async function pictureFeeds(): Promise<Feeds> {
  const data = (await graphsNumbers('llava')).get('pixel_values')!
  return { pixel_values: { type: 'float32', data, dims: [1, 3, 16, 16] } }
}

/** The logits of the last two tokens after a picture, and the logits of the last token from a cache. */
export async function pictureLogits(run: RunGraph): Promise<{ whole: Float32Array; cached: Float32Array }> {
  const { inputIds, imageToken } = expectedPicture()
  const { image_features: features } = await run('vision_encoder', await pictureFeeds())
  const { inputs_embeds: vectors } = await run('embed_tokens', { input_ids: int64(inputIds) })
  const width = vectors.dims[2]
  const data = Float32Array.from(vectors.data as Float32Array)
  data.set(features.data as Float32Array, inputIds.indexOf(imageToken) * width)
  const count = inputIds.length
  const columns = (start: number, end: number): Feeds => ({
    inputs_embeds: { type: 'float32', data: data.slice(start * width, end * width), dims: [1, end - start, width] },
    attention_mask: int64(Array(end).fill(1)),
    position_ids: int64(Array.from({ length: end - start }, (_, i) => start + i)),
  })
  const empty = { type: 'float32' as const, data: new Float32Array(), dims: [1, 1, 0, 8] }
  const branch = (hasCache: boolean): Feeds => ({
    use_cache_branch: { type: 'bool', data: Uint8Array.of(hasCache ? 1 : 0), dims: [1] },
  })
  const none = { 'past_key_values.0.key': empty, 'past_key_values.0.value': empty }
  const whole = await run('decoder', { ...columns(0, count), ...none, ...branch(false) })
  const past = await run('decoder', { ...columns(0, count - 1), ...none, ...branch(false) })
  const cached = await run('decoder', {
    ...columns(count - 1, count),
    ...branch(true),
    'past_key_values.0.key': past['present.0.key'],
    'past_key_values.0.value': past['present.0.value'],
  })
  return { whole: lastRows(whole.logits, 2), cached: lastRows(cached.logits, 1) }
}

/** Computes the same logits from a folder's graphs with plain ONNX Runtime. */
export async function stockPictureLogits(folder: string): ReturnType<typeof pictureLogits> {
  const files = { vision_encoder: 'vision_encoder', embed_tokens: 'embed_tokens', decoder: 'decoder_model_merged' }
  return pictureLogits(async (graph, feeds) => {
    const session = await InferenceSession.create(path.join(folder, 'onnx', `${files[graph]}.onnx`))
    const tensors = Object.entries(feeds).map(([name, { type, data, dims }]) => {
      return [name, new Tensor(type as 'float32', data as Float32Array, dims)] as const
    })
    const outputs = await session.run(Object.fromEntries(tensors))
    await session.release()
    return outputs as unknown as Record<string, RuntimeTensor>
  })
}
