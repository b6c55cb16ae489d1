// Conversion to plain LoRA with the base weights read from a checkpoint, one at a time.

import { closing, closingOnError, type Directory, type Place } from '../base/bytes.js'
import { decodeWeights, type WeightDtype } from '../base/dtype.js'
import { type Matrix, transpose, zeros } from '../base/tensor.js'
import { type Checkpoint, openCheckpoint, shardSource } from '../formats/checkpoint.js'
import { stacked } from '../linalg/product.js'
import { LoraAdapter } from '../lora/adapter.js'
import type { LoraConfig } from '../lora/config.js'
import { type BaseWeights, toPlain } from '../lora/init/to-plain.js'
import { openAdapters } from '../merge/plan/adapters.js'
import { knowBase } from '../merge/plan/base-model.js'
import { loadConfig } from '../merge/plan/config-edit.js'
import { type FoundWeight, findWeights, missingError } from '../merge/plan/find-weights.js'
import { refuseQuantizedConfig } from '../merge/plan/refusals.js'

export async function convertToPlain(
  adapter: LoraAdapter,
  from: Directory | BaseWeights | LoraAdapter,
  basePath?: string,
): Promise<LoraAdapter> {
  if (typeof from === 'function' || from instanceof LoraAdapter) return toPlain(adapter, from)
  const weights = openBaseWeights({ directory: from, file: basePath }, adapter.parts('linear'), adapter.config)
  return closing(await weights, ({ read }) => toPlain(adapter, read))
}

interface SearchedLayer {
  readonly name: string
  /** (d, k) */
  readonly shape: readonly [number, number]
}

/**
 * Finds the weights of linear layers in a checkpoint, and returns a function that reads a weight. Throws MismatchError
 * if a weight is missing.
 */
export async function openBaseWeights(
  { directory, file }: Place,
  layers: readonly SearchedLayer[],
  { fanInFanOut }: Pick<LoraConfig, 'fanInFanOut'>,
) {
  const config = (await loadConfig(directory))?.values
  refuseQuantizedConfig(config, `${directory.name}/config.json`)
  return closingOnError(await openCheckpoint(directory, file), async (checkpoint) => {
    const byName = new Map<string, readonly FoundWeight[]>()
    if (layers.length > 0) {
      const opened = await openAdapters([{ adapter: placeholders(layers, fanInFanOut), weight: 1 }])
      await opened.close()
      const { layers: searched } = opened
      const { names, ties } = await knowBase(checkpoint, config, opened)
      const search = { layers: searched, names, checkpoint, ties, config }
      for (const layer of searched) {
        const found = findWeights(layer, search)
        if (found !== undefined) byName.set(layer.name, found)
      }
      const missing = searched.filter(({ name }) => !byName.has(name))
      if (missing.length > 0) throw missingError(missing, searched, checkpoint)
    }
    return {
      /** (d, k) */
      async read(name: string): Promise<Matrix> {
        const parts: Matrix[] = []
        for (const part of byName.get(name)!) parts.push(await readPart(part, checkpoint))
        return stacked(parts)
      },
      close: checkpoint.close,
    }
  })
}

async function readPart({ tensor, layer }: FoundWeight, checkpoint: Checkpoint): Promise<Matrix> {
  const { dtype, offset, byteLength, shape } = tensor.info
  const { first, count } = layer.region ?? { first: 0, count: shape[0] }
  const rowBytes = byteLength / shape[0]
  const bytes = await shardSource(checkpoint, tensor.shard).read(offset + first * rowBytes, count * rowBytes)
  const stored: Matrix = { data: decodeWeights(bytes, dtype as WeightDtype), shape: [count, shape[1]] }
  return layer.isInputMajor ? transpose(stored) : stored
}

/** An adapter with layers of rank 1, for a search that only needs names and shapes. */
function placeholders(layers: readonly SearchedLayer[], fanInFanOut: boolean): LoraAdapter {
  const result = new LoraAdapter({ rank: 1, fanInFanOut })
  for (const { name, shape } of layers) {
    const [d, k] = shape
    result.addFactors(name, zeros(1, k, new Float32Array()), zeros(d, 1, new Float32Array()))
  }
  return result
}
