// A digest of the weights that an adapter was trained on, because names of models and fitting shapes tell little.

import type { ByteSource } from '../core/base/bytes.js'
import type { BaseRecord } from '../lora/adapter.js'
import { ENCODER_FILES } from './inputs/encoder-decoder.js'
import type { Model } from './model-folder.js'

type Weights = Pick<Model, 'onnx' | 'onnxPath'>

/** Returns the record of a model, or of the decoder if the model also has an encoder. */
export async function recordOfBase({ onnx, onnxPath }: Weights): Promise<BaseRecord> {
  const weightFiles = [...onnx.files].filter(([location]) => !location.startsWith(ENCODER_FILES))
  return { graph: onnxPath, weights: await weightsDigest(weightFiles.map(([, file]) => file)) }
}

/**
 * Returns a warning if an adapter was trained on other weights. Returns undefined if they are the same or cannot be
 * compared, because there is no record or it is of another file, such as a quantized graph.
 */
export async function otherWeights(
  trainedOn: BaseRecord | undefined,
  model: Partial<Weights & Pick<Model, 'name'>>,
): Promise<string | undefined> {
  const { onnx, onnxPath } = model
  if (trainedOn === undefined || onnx === undefined || onnxPath !== trainedOn.graph) return undefined
  const { weights } = await recordOfBase({ onnx, onnxPath })
  if (weights === trainedOn.weights) return undefined
  return `the adapter was trained on another base than ${model.name ?? onnx.name}: the digest of the weights is ${weights}, and its lowrank.json has ${trainedOn.weights}`
}

/** Files are hashed whole up to this total size, and then in samples. Some exporters write a file for each weight. */
const WHOLE_BYTES = 64 << 20
const SAMPLES = { large: 256, small: 4 }
const SAMPLE_BYTES = 64 << 10

/** Computes a digest of weights, in the graph's order. Large files are sampled: small changes can go unnoticed. */
export async function weightsDigest(files: Iterable<ByteSource>): Promise<string> {
  const hash = new Hash()
  let left = WHOLE_BYTES
  for (const source of files) {
    await source.fetch?.()
    const { byteLength } = source
    const isWhole = byteLength <= Math.max(left, SAMPLES.small * SAMPLE_BYTES)
    if (isWhole) left -= byteLength
    const samples = byteLength > WHOLE_BYTES ? SAMPLES.large : SAMPLES.small
    const count = isWhole ? Math.ceil(byteLength / SAMPLE_BYTES) : samples
    const stride = isWhole ? SAMPLE_BYTES : (byteLength - SAMPLE_BYTES) / (samples - 1)
    for (let i = 0; i < count; i++) {
      const start = Math.floor(i * stride)
      hash.add(await source.read(start, Math.min(SAMPLE_BYTES, byteLength - start)))
    }
    hash.add(new TextEncoder().encode(String(byteLength)))
  }
  return hash.digest()
}

/** Two FNV-1a hashes side by side. No protection against attacks. */
export class Hash {
  #a = 0x811c9dc5
  #b = 0x9e3779b9

  add(values: Uint8Array | Int32Array): this {
    let [a, b] = [this.#a, this.#b]
    for (let i = 0; i < values.length; i++) {
      a = Math.imul(a ^ values[i], 0x01000193)
      b = Math.imul(b ^ values[i] ^ (b >>> 13), 0x01000193)
    }
    this.#a = Math.imul(a ^ values.length, 0x01000193)
    this.#b = Math.imul(b ^ values.length, 0x01000193)
    return this
  }

  digest(): string {
    return [this.#a, this.#b].map((word) => (word >>> 0).toString(16).padStart(8, '0')).join('')
  }
}
