// The adapters of a merge behind one form: layers whose factors are ranges of a source, read when their tensor's turn comes,
// so that memory does not grow with the adapter.

import { type ByteSource, type Directory, MemorySource } from '../../base/bytes.js'
import { encodeFloats, type FloatDtype } from '../../base/dtype.js'
import { ConfigError, MismatchError, UnsupportedError } from '../../base/errors.js'
import type { Matrix } from '../../base/tensor.js'
import { isFloatDtype, type TensorInfo } from '../../formats/safetensors.js'
import { LoraAdapter } from '../../lora/adapter.js'
import { type LoraConfig, scalingOf } from '../../lora/config.js'
import { openAdapter } from '../../lora/peft.js'
import { requirePlain } from '../../lora/plain.js'

/** An adapter in memory, or the folder of one, which is read as it is needed. */
export type MergeAdapter = LoraAdapter | Directory

/** How much of an adapter is merged: W + weight · s·B·A. */
export interface WeightedAdapter {
  adapter: MergeAdapter
  /** Default 1. */
  weight?: number
}

/** A matrix (rows, columns) that stays in its source. Plain data, so that plans can be sent to threads. */
export interface Factor {
  /** For messages. */
  readonly name: string
  /** Which of the adapters' sources holds it. */
  readonly source: number
  readonly offset: number
  readonly dtype: FloatDtype
  readonly rows: number
  readonly columns: number
}

/** One layer of one adapter. */
export interface LayerFactors {
  readonly name: string
  readonly d: number
  readonly k: number
  readonly rank: number
  /** weight · s */
  readonly scale: number
  /** The base stores this weight as (k, d). */
  readonly isInputMajor: boolean
  /** (r, k) */
  readonly a: Factor
  /** (d, r) */
  readonly b: Factor
}

export interface OpenAdapters {
  readonly layers: readonly LayerFactors[]
  readonly sources: readonly ByteSource[]
  close(): Promise<void>
}

/**
 * Opens all adapters of a merge. Layers come in the adapters' order.
 *
 * @param sign −1 to take adapters out again
 * @throws what openAdapter throws; ConfigError when a weight is not usable, MismatchError when there is no layer
 */
export async function openAdapters(
  inputs: readonly (MergeAdapter | WeightedAdapter)[],
  sign: 1 | -1 = 1,
): Promise<OpenAdapters> {
  const closers: (() => Promise<void>)[] = []
  const close = async () => {
    for (const closeOne of closers.splice(0)) await closeOne()
  }
  try {
    const layers: LayerFactors[] = []
    const sources: ByteSource[] = []
    for (const [i, input] of inputs.entries()) {
      const { adapter, weight = 1 } = 'adapter' in input ? input : { adapter: input }
      if (!Number.isFinite(weight) || weight === 0) {
        throw new ConfigError({
          where: `weight of adapter ${i + 1}`,
          what: 'not usable',
          expected: 'a finite number other than 0',
          got: String(weight),
        })
      }
      if (adapter instanceof LoraAdapter) {
        requirePlain(adapter, 'merging into checkpoints')
        layers.push(...layersInMemory(adapter, sign * weight, sources))
      } else {
        const opened = await openAdapter(adapter)
        closers.push(opened.close)
        requirePlain(opened, 'merging into checkpoints')
        const { source } = opened.file
        const index = sources.push(source) - 1
        layers.push(
          ...opened.layers.map(({ name, config, A, B }) =>
            layerFactors(name, config, sign * weight, tensorFactor(source, index, A), tensorFactor(source, index, B)),
          ),
        )
      }
    }
    if (layers.length === 0) throw new MismatchError({ where: 'adapters', what: 'there is no layer to merge' })
    return { layers, sources, close }
  } catch (error) {
    await close()
    throw error
  }
}

function layersInMemory(adapter: LoraAdapter, weight: number, sources: ByteSource[]): LayerFactors[] {
  return [...adapter].map(([name, layer]) => {
    const a = matrixFactor(`${name}.weightA`, layer.weightA, sources)
    return layerFactors(name, layer.config, weight, a, matrixFactor(`${name}.weightB`, layer.weightB, sources))
  })
}

function layerFactors(name: string, config: LoraConfig, weight: number, a: Factor, b: Factor): LayerFactors {
  const scale = weight * scalingOf(config.rank, config.alpha, config.useRslora)
  return { name, d: b.rows, k: a.columns, rank: config.rank, scale, isInputMajor: config.fanInFanOut, a, b }
}

function tensorFactor(source: ByteSource, index: number, { name, dtype, shape, offset }: TensorInfo): Factor {
  if (!isFloatDtype(dtype)) {
    throw new UnsupportedError({
      where: `${source.name}: ${name}`,
      what: 'a factor of this type cannot be merged',
      expected: 'F32, F16 or BF16',
      got: dtype,
    })
  }
  return { name: `${source.name}: ${name}`, source: index, offset, dtype, rows: shape[0], columns: shape[1] }
}

function matrixFactor(name: string, { data, shape }: Matrix, sources: ByteSource[]): Factor {
  const bytes = encodeFloats(data instanceof Float32Array ? data : Float32Array.from(data), 'F32')
  return {
    name,
    source: sources.push(new MemorySource(bytes, name)) - 1,
    offset: 0,
    dtype: 'F32',
    rows: shape[0],
    columns: shape[1],
  }
}
