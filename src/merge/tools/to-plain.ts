// Conversion to plain LoRA with the base weights read from a checkpoint, one at a time.

import { closing, type Directory } from '../../core/base/bytes.js'
import { decodeWeights, type WeightDtype } from '../../core/base/dtype.js'
import { type Matrix, transpose } from '../../core/base/tensor.js'
import { stacked } from '../../core/linalg/product.js'
import { type Checkpoint, openCheckpoint, shardSource } from '../../files/checkpoint.js'
import { LoraAdapter } from '../../lora/adapter.js'
import { type BaseWeights, toPlain } from '../../lora/init/to-plain.js'
import { openAdapters } from '../plan/adapters.js'
import { knowBase } from '../plan/base-model.js'
import { loadConfig, type ModelConfig } from '../plan/config-edit.js'
import { type FoundWeight, findWeights, missingError } from '../plan/find-weights.js'
import { refuseQuantizedConfig } from '../plan/refusals.js'

export async function convertToPlain(
  adapter: LoraAdapter,
  from: Directory | BaseWeights | LoraAdapter,
  basePath?: string,
): Promise<LoraAdapter> {
  if (typeof from === 'function' || from instanceof LoraAdapter) return toPlain(adapter, from)
  const config = (await loadConfig(from))?.values
  refuseQuantizedConfig(config, `${from.name}/config.json`)
  return closing(await openCheckpoint(from, basePath), async (checkpoint) => {
    const weights = await weightsOf(adapter, checkpoint, config)
    return toPlain(adapter, async (name) => {
      const parts: Matrix[] = []
      for (const part of weights.get(name)!) parts.push(await readPart(part, checkpoint))
      return stacked(parts)
    })
  })
}

/** Finds the weights of an adapter's linear layers in a checkpoint. Throws MismatchError if a weight is missing. */
async function weightsOf(adapter: LoraAdapter, checkpoint: Checkpoint, config: ModelConfig | undefined) {
  const opened = await openAdapters([{ adapter, weight: 1 }])
  const { names, ties } = await knowBase(checkpoint, config, opened)
  const layers = opened.layers.filter(({ isLinear }) => isLinear)
  const search = { layers, names, checkpoint, ties, config }
  const weights = new Map<string, readonly FoundWeight[]>()
  for (const layer of layers) {
    const found = findWeights(layer, search)
    if (found !== undefined) weights.set(layer.name, found)
  }
  const missing = layers.filter(({ name }) => !weights.has(name))
  if (missing.length > 0) throw missingError(missing, layers, checkpoint)
  return weights
}

async function readPart({ tensor, layer }: FoundWeight, checkpoint: Checkpoint): Promise<Matrix> {
  const { dtype, offset, byteLength, shape } = tensor.info
  const { first, count } = layer.region ?? { first: 0, count: shape[0] }
  const rowBytes = byteLength / shape[0]
  const bytes = await shardSource(checkpoint, tensor.shard).read(offset + first * rowBytes, count * rowBytes)
  const stored: Matrix = { data: decodeWeights(bytes, dtype as WeightDtype), shape: [count, shape[1]] }
  return layer.isInputMajor ? transpose(stored) : stored
}
