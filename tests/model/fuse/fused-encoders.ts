// Tiny encoders that ONNX Runtime's optimizer fused, with the numbers of PEFT and PyTorch (tests/golden/fused).

import { readFileSync } from 'node:fs'
import { type Feeds, type LoraAdapter, loadAdapter, type OnnxModel, type RuntimeTensor } from '../../../src/api/node.js'
import { NodeDirectory } from '../../../src/files/io/node/files.js'
import { loadOnnx } from '../../../src/onnx/format/model.js'
import { goldenPath, tensorsOf, type Values } from '../../golden.js'
import { relativeError } from '../golden.js'

/** Folders of graphs: the model, and the operator that computes its attention. */
export const FUSED = ['bert', 'roberta', 'distilbert', 'xlm-roberta'].flatMap((model) => [
  { model, name: `${model}-mha`, operator: 'MultiHeadAttention' },
  { model, name: `${model}-attention`, operator: 'Attention' },
])

/** Models in which ONNX Runtime's optimizer only fused norms and activations, and left attention as it was. */
export const FUSED_NORMS = ['vit', 'modernbert', 'dinov2'].map((model) => {
  return { model, name: `${model}-norms`, operator: 'SkipLayerNormalization' }
})

/** The same models as optimum exports them. */
export const PLAIN = FUSED_NORMS.map(({ model }) => ({ model, name: `${model}-plain`, operator: 'LayerNormalization' }))

/** The parts that PEFT's adapters train. `saved`: all norms, whole. */
export type FusedKind = 'lora' | 'dora' | 'bias' | 'saved'

export function fusedKinds(model: string): FusedKind[] {
  const hasSaved = FUSED_NORMS.some((one) => one.model === model)
  return hasSaved ? ['lora', 'dora', 'bias', 'saved'] : ['lora', 'dora', 'bias']
}

/** Returns the path of a graph. */
export const fusedFile = (name: string) => goldenPath('fused', name, 'onnx', 'model.onnx')

export function openFused(name: string): Promise<OnnxModel> {
  return loadOnnx(new NodeDirectory(goldenPath('fused', name)), 'onnx/model.onnx')
}

/** Inputs, hidden states of the base and with each adapter, g, and gradients under PEFT's names. */
export function fusedNumbers(model: string): Promise<Values> {
  return tensorsOf(goldenPath('fused', model, 'numbers.safetensors'))
}

/** PEFT's adapter, without the bias of the pooler: the graphs end with the hidden states. */
export async function fusedAdapter(model: string, kind: FusedKind): Promise<LoraAdapter> {
  const adapter = await loadAdapter(goldenPath('fused', model, kind))
  adapter.remove('pooler.dense.bias')
  return adapter
}

export function fusedOperators(model: string): Record<string, string[]> {
  return JSON.parse(readFileSync(goldenPath('fused', model, 'golden.json'), 'utf8')).operators
}

/** Returns the golden inputs that a graph has. */
export function fusedFeeds(numbers: Values, inputs: readonly string[]): Feeds {
  return Object.fromEntries(
    inputs.map((name) => {
      const { data, shape } = numbers.get(name)!
      if (name === 'pixel_values') return [name, { type: 'float32', data: Float32Array.from(data), dims: shape }]
      return [name, { type: 'int64', data: BigInt64Array.from(data, (id) => BigInt(id)), dims: shape }]
    }),
  )
}

/** Returns the largest error relative to the largest value, over all tokens except padding. */
export function errorAtTokens({ data, dims }: RuntimeTensor, numbers: Values, wanted: string): number {
  const mask = numbers.get('attention_mask')?.data
  const width = dims[2]
  const atTokens = (values: ArrayLike<number>) => {
    return Array.from(values).filter((_, i) => mask === undefined || mask[Math.floor(i / width)] === 1)
  }
  return relativeError(atTokens(data as Float32Array), atTokens(numbers.get(wanted)!.data))
}
