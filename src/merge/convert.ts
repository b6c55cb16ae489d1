// Conversion to plain LoRA with the base weights read from a checkpoint: only those of adapted layers, one at a time.

import type { Directory } from '../base/bytes.js'
import { decodeWeights, type WeightDtype } from '../base/dtype.js'
import { type Matrix, zeros } from '../base/tensor.js'
import { type Checkpoint, openCheckpoint, shardSource } from '../formats/checkpoint.js'
import { transpose } from '../linalg/product.js'
import { LoraAdapter } from '../lora/adapter.js'
import { type BaseWeights, toPlain } from '../lora/init/to-plain.js'
import { readConfig } from './chunks/open-plan.js'
import { openAdapters } from './plan/adapters.js'
import { knowBase } from './plan/base-model.js'
import { type FoundWeight, findWeights, missingError } from './plan/find-weights.js'
import { refuseQuantizedConfig } from './plan/refusals.js'

/** Where the base is that an adapter is converted by. */
export interface ConvertOptions {
  /** The checkpoint's file or index in its folder. Default: found there. */
  basePath?: string | undefined
}

/** Makes plain LoRA of an adapter, as the public function of this name says (index/verbs.ts). */
export async function convertToPlain(
  adapter: LoraAdapter,
  from: Directory | BaseWeights | LoraAdapter,
  { basePath }: ConvertOptions = {},
): Promise<LoraAdapter> {
  if (typeof from === 'function' || from instanceof LoraAdapter) return toPlain(adapter, from)
  const checkpoint = await openCheckpoint(from, basePath)
  try {
    const config = await readConfig(from)
    refuseQuantizedConfig(config, `${from.name}/config.json`)
    return await toPlain(adapter, await baseWeightsOf(adapter, checkpoint, config))
  } finally {
    await checkpoint.close()
  }
}

/** Finds the weights of all linear layers, and reads one when it is asked for. Other layers start without their base. */
async function baseWeightsOf(
  adapter: LoraAdapter,
  checkpoint: Checkpoint,
  config: Readonly<Record<string, unknown>> | undefined,
): Promise<BaseWeights> {
  const byName = new Map<string, readonly FoundWeight[]>()
  if (adapter.parts('linear').length > 0) {
    const { layers, close } = await openAdapters([placeholders(adapter)])
    await close()
    const { names, ties } = await knowBase(checkpoint, config, {
      layers,
      replacements: [],
      tasks: new Set(),
      classes: new Set(),
      sources: [],
      meanings: [],
    })
    const search = { layers, names, locate: names.locate, checkpoint, ties, config }
    for (const layer of layers) {
      const found = findWeights(layer, search)
      if (found !== undefined) byName.set(layer.name, found)
    }
    const missing = layers.filter(({ name }) => !byName.has(name))
    if (missing.length > 0) throw missingError(missing, layers, checkpoint.tensors)
  }
  return async (name): Promise<Matrix> => {
    const parts: Matrix[] = []
    for (const part of byName.get(name)!) parts.push(await readPart(part, checkpoint))
    if (parts.length === 1) return parts[0]
    const [rows, columns] = [parts.reduce((sum, { shape }) => sum + shape[0], 0), parts[0].shape[1]]
    const whole = zeros(rows, columns, parts[0].data)
    let at = 0
    for (const { data } of parts) {
      whole.data.set(data, at)
      at += data.length
    }
    return whole
  }
}

/** The rows of the module's weight (d, k) that a tensor holds. */
async function readPart({ tensor, layer }: FoundWeight, checkpoint: Checkpoint): Promise<Matrix> {
  const { dtype, offset, byteLength, shape } = tensor.info
  const { first, count } = layer.region ?? { first: 0, count: shape[0] }
  const rowBytes = byteLength / shape[0]
  const bytes = await shardSource(checkpoint, tensor.shard).read(offset + first * rowBytes, count * rowBytes)
  const stored: Matrix = { data: decodeWeights(bytes, dtype as WeightDtype), shape: [count, shape[1]] }
  return layer.isInputMajor ? transpose(stored) : stored
}

/** The linear layers as plain ones of rank 1, for a search that asks for names and shapes. */
function placeholders(adapter: LoraAdapter): LoraAdapter {
  const result = new LoraAdapter({ rank: 1, fanInFanOut: adapter.config.fanInFanOut })
  for (const { name, d, k, weightA } of adapter.parts('linear')) {
    result.addFactors(name, zeros(1, k, weightA.data), zeros(d, 1, weightA.data))
  }
  return result
}
