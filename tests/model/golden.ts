// Golden models and numbers for tests of the graph transforms.

import { readFileSync } from 'node:fs'
import { type Feeds, type LoraAdapter, loadAdapter, type Model, type OnnxModel } from '../../src/api/node.js'
import { NodeDirectory } from '../../src/files/io/node/files.js'
import { parseSafetensorsHeader, readTensorF32 } from '../../src/files/safetensors.js'
import type { Example } from '../../src/model/text/records.js'
import { loadOnnx } from '../../src/onnx/format/model.js'
import type { TrainedLayer, TrainedTensor } from '../../src/train/graph/training-graph.js'
import { causalLm } from '../../src/train/tasks/causal-lm.js'
import type { OpenTask } from '../../src/train/tasks/task.js'

export const MODELS = 'tests/golden/models'
export const UNION = 'models/union-3m'

export interface GoldenBatch {
  readonly inputIds: number[][]
  readonly attentionMask: number[][]
  readonly labels: number[][]
}

export interface Golden {
  readonly loss: number[]
  readonly baseLoss: number[]
  readonly batches: GoldenBatch[]
  readonly refuse: { op: string; nodes: string[] }
}

export function golden(folder: string): Golden {
  return JSON.parse(readFileSync(`${folder}/golden.json`, 'utf8'))
}

export function openModel(folder: string): Promise<OnnxModel> {
  return loadOnnx(new NodeDirectory(folder), 'onnx/model.onnx')
}

export function openAdapter(folder: string): Promise<LoraAdapter> {
  return loadAdapter(folder)
}

export function layersOf(adapter: LoraAdapter): TrainedLayer[] {
  return adapter.parts('linear').map(({ name, d, k, rank, scaling }) => ({ name, d, k, rank, scaling }))
}

/** Opens causal language modeling for a graph without a model folder. */
export function causalOf(onnx: OnnxModel): OpenTask<Example> {
  return causalLm.open({ onnx, padTokenId: 0, graphs: {} } as unknown as Model, [])
}

/** Makes the feeds of a batch whose rows are padded on the right. */
export function collated(task: OpenTask<Example>, { inputIds, attentionMask, labels }: GoldenBatch): Feeds {
  const lengths = attentionMask.map((row) => row.reduce((sum, entry) => sum + entry, 0))
  const cut = (row: number[], i: number) => Int32Array.from(row.slice(0, lengths[i]))
  const examples = inputIds.map((row, i) => ({ inputIds: cut(row, i), labels: cut(labels[i], i) }))
  return task.collate(examples, inputIds[0].length)
}

export function targetCount({ labels }: GoldenBatch): number {
  return labels.flatMap((row) => row.slice(1)).filter((label) => label >= 0).length
}

/** (rows, columns) → (columns, rows) */
export function transposed(data: ArrayLike<number>, [rows, columns]: readonly number[]): Float32Array {
  const result = new Float32Array(rows * columns)
  for (let i = 0; i < rows; i++) for (let j = 0; j < columns; j++) result[j * rows + i] = data[i * columns + j]
  return result
}

/** Splits a name such as model.layers.0.mlp.up_proj.A into the layer and the factor. */
export function partOf(name: string): [layer: string, factor: 'A' | 'B'] {
  return [name.slice(0, -2), name.slice(-1) as 'A' | 'B']
}

/** Makes feeds with A and Bᵀ of each layer. */
export function factorFeeds(parameters: readonly TrainedTensor[], adapter: LoraAdapter): Feeds {
  return Object.fromEntries(
    parameters.map(({ name, input, shape }) => {
      const [layer, factor] = partOf(name)
      const { weightA, weightB } = adapter.layer(layer)
      const matrix = factor === 'A' ? weightA : weightB
      const data = factor === 'A' ? Float32Array.from(matrix.data) : transposed(matrix.data, matrix.shape)
      return [input, { type: 'float32', data, dims: shape }]
    }),
  )
}

/** Reads the gradients of A (r, k) and of Bᵀ (r, d). */
export async function goldenGradients(folder: string, batch: number) {
  const file = await parseSafetensorsHeader(await new NodeDirectory(folder).open(`gradients-${batch}.safetensors`))
  const gradients = new Map<string, Float32Array>()
  for (const [name] of file.tensors) {
    const { data, shape } = await readTensorF32(file, name)
    gradients.set(name, name.includes('lora_A') ? data : transposed(data, shape))
  }
  await file.source.close()
  return (layer: string, factor: string) => gradients.get(`base_model.model.${layer}.lora_${factor}.weight`)!
}

/** Returns the largest error relative to the largest value. */
export function relativeError(actual: ArrayLike<number>, expected: ArrayLike<number>): number {
  let error = actual.length === expected.length ? 0 : Number.POSITIVE_INFINITY
  let largest = 0
  for (let i = 0; i < expected.length; i++) {
    error = Math.max(error, Math.abs(actual[i] - expected[i]))
    largest = Math.max(largest, Math.abs(expected[i]))
  }
  return Number.isNaN(error) ? Number.POSITIVE_INFINITY : error / largest
}
