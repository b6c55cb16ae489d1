// Bases of golden data whose values follow from a formula of name and place, so that only the shapes are stored.

import { readFileSync } from 'node:fs'
import { crc32 } from 'node:zlib'
import { MemoryDirectory } from '../../../src/api/node.js'
import { elementCount } from '../../../src/core/base/tensor.js'
import type { TensorBytes } from '../../../src/files/safetensors.js'
import { goldenPath } from '../../golden.js'
import { safetensors } from '../toolkit.js'

/** A base, and facts about the merged result. */
export interface BaseSketch {
  config: Record<string, unknown>
  tensors: Record<string, number[]>
  /** The option for tied weights. */
  tied?: string
  /** Fields of the merged model's config.json. */
  merged?: Record<string, unknown>
}

/** Computes the values of a base's tensor with the formula of the golden script. */
function values(name: string, shape: readonly number[]): Float32Array {
  const seed = BigInt(crc32(name))
  return Float32Array.from({ length: elementCount(shape) }, (_, i) => {
    let bits = (BigInt(i + 1) * 2654435761n + seed) & 0xffffffffn
    bits = ((bits ^ (bits >> 15n)) * 2246822519n) & 0xffffffffn
    return (Number(bits) / 2 ** 32 - 0.5) / 2
  })
}

/** Reads the base.json of a case. */
export function sketchOf(...way: string[]): BaseSketch {
  return JSON.parse(readFileSync(goldenPath(...way, 'base.json'), 'utf8'))
}

/** Makes the base's folder. */
export async function baseOf({ config, tensors }: BaseSketch): Promise<MemoryDirectory> {
  const list = Object.entries(tensors).map(([name, shape]): TensorBytes => {
    return { name, dtype: 'fp32', shape, data: new Uint8Array(values(name, shape).buffer) }
  })
  return new MemoryDirectory({ 'config.json': JSON.stringify(config), 'model.safetensors': await safetensors(list) })
}
