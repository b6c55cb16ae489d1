// Merges an adapter into an ONNX model: a new model whose weights hold W + s·B·A, of the same types, which runs anywhere
// without LoRA inputs. Weights stream from the old file to the new one.

import type { Directory } from '../base/bytes.js'
import type { TensorProto } from '../formats/onnx/gen/onnx_pb.js'
import type { OnnxModel } from '../formats/onnx/model.js'
import { byteLengthOf, dimsOf, isExternal, weightRange } from '../formats/onnx/tensors.js'
import { type WeightWriter, writeOnnx } from '../formats/onnx/write.js'
import type { ModuleMap } from '../graph/linears.js'
import type { LoraAdapter } from '../lora/adapter.js'
import { planOnnxMerge } from './onnx-plan.js'
import { copyCompanions, type MergeOptions, type MergeReport, refuseBaseAsOutput, writeTogether } from './output.js'
import { type LayerChange, mergeWeight, type ReadWeight } from './weight.js'

export interface MergeOnnxOptions extends MergeOptions {
  /** Where the graph goes inside `out`. Default: the base file's own name. */
  path?: string
  /** A model folder whose configuration, tokenizer and other files are copied; weights in it are not. */
  companions?: Directory
  /** Module name → name of the node or of its weight, where the graph's own names do not tell. */
  modules?: ModuleMap
}

/**
 * Writes the merged model. Its files appear together when all is done.
 *
 * @throws MismatchError when the adapter does not fit, UnsupportedError naming the node when a weight cannot be merged
 *   into, NumericError naming the weight when a result is not finite, FileError when the output is the base itself;
 *   nothing is left of the output then
 */
export async function mergeOnnx(
  model: OnnxModel,
  adapter: LoraAdapter,
  out: Directory,
  options: MergeOnnxOptions = {},
): Promise<MergeReport> {
  const startedAt = performance.now()
  const { path = model.fileName, companions, modules } = options
  const { proto, targets } = planOnnxMerge(model, adapter, modules)
  await refuseBaseAsOutput(out, path, model.file(model.fileName))
  const initializers = proto.graph?.initializer ?? []
  const layers: LayerChange[] = []
  const overrides = new Map<string, WeightWriter>()
  for (const [name, { target, source }] of targets) {
    const read = weightReader(model, source)
    overrides.set(name, () => mergeWeight(target, read, (change) => layers.push(change)))
  }
  const totalBytes = initializers.reduce((sum, tensor) => sum + (byteLengthOf(tensor.dataType, dimsOf(tensor)) ?? 0), 0)
  const bytes = await writeTogether(out, totalBytes, options, async (staged) => {
    if (companions !== undefined) await copyCompanions(companions, staged)
    await writeOnnx(model, proto, staged, path, overrides)
    return staged.writtenBytes
  })
  return {
    out: `${out.name}/${path}`,
    tensors: initializers.length,
    changed: targets.size,
    bytes,
    seconds: (performance.now() - startedAt) / 1000,
    layers: inOrder(layers, adapter),
  }
}

/** Ranges of a tensor's bytes, wherever they are. */
export function weightReader(model: OnnxModel, tensor: TensorProto): ReadWeight {
  if (isExternal(tensor)) {
    const { location, offset } = weightRange(tensor, model.name)
    return (start, byteLength) => model.file(location).read(offset + start, byteLength)
  }
  return async (start, byteLength) => (await model.readTensor(tensor)).subarray(start, start + byteLength)
}

/** One entry a layer of the adapter, in the adapter's order: equal weights of several nodes change alike. */
function inOrder(changes: readonly LayerChange[], adapter: LoraAdapter): LayerChange[] {
  const byName = new Map(changes.map((change) => [change.name, change]))
  return adapter.names().flatMap((name) => byName.get(name) ?? [])
}
