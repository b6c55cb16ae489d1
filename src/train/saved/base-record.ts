// The base that an adapter was made for, as its folder records it: which graph, and a digest of its weights.

import type { Directory } from '../../base/bytes.js'
import { MismatchError } from '../../base/errors.js'
import type { Model } from '../../graph/model-folder.js'
import { BASE_WEIGHTS, weightsDigest } from './fingerprint.js'
import { type BaseRecord, readMarker } from './run-folder.js'

export function recordOfBase({ onnxPath }: Pick<Model, 'onnxPath'>, fingerprint: Record<string, string>): BaseRecord {
  return { graph: onnxPath, weights: JSON.parse(fingerprint[BASE_WEIGHTS]) }
}

/** Without a record, or for another file of the model, such as a quantized one, nothing can be told. */
export async function checkBase(adapter: Directory, model: Pick<Model, 'onnx' | 'onnxPath' | 'name'>): Promise<void> {
  const { base } = (await readMarker(adapter)) ?? {}
  if (base === undefined || base.graph !== model.onnxPath) return
  const weights = await weightsDigest(model.onnx.files.values())
  if (weights === base.weights) return
  throw new MismatchError({
    where: adapter.name,
    what: `the adapter was trained on another base than ${model.name}`,
    expected: `weights with the digest ${base.weights}`,
    got: weights,
    hint: 'Use the base of the training: adapter_config.json and README.md name it',
  })
}
