// How an adapter fits an ONNX model: each of its parts is planned on its own, as a merge would plan it, so that each problem is
// known.

import { decodeFloats } from '../../base/dtype.js'
import { LowrankError } from '../../base/errors.js'
import { elementCount, zeros } from '../../base/tensor.js'
import type { OnnxModel } from '../../formats/onnx/model.js'
import type { TensorInfo } from '../../formats/safetensors.js'
import { findLinears } from '../../graph/match/linears.js'
import { Graph } from '../../graph/view/graph.js'
import { LoraAdapter } from '../../lora/adapter.js'
import { requireKinds } from '../../lora/plain.js'
import type { AdapterFile } from '../../peft/adapter-folder.js'
import type { LayerTensors } from '../../peft/tensors.js'
import { type FitReport, fitReport, missingPart, type PartFit } from '../fit.js'
import { MERGED_KINDS } from './edits.js'
import { type OnnxMergePlan, planOnnxMerge } from './plan.js'

const PIECE_BYTES = 1 << 22

type Target = OnnxMergePlan['targets'] extends ReadonlyMap<string, infer T> ? T : never

/**
 * @param normDeltas ‖s·B·A‖ by layer: then the weights are read, and each layer has its relative change
 */
export async function fitOnnx(
  model: OnnxModel,
  adapter: AdapterFile,
  normDeltas?: ReadonlyMap<string, number>,
): Promise<FitReport> {
  const parts: PartFit[] = []
  const norms = new Map<string, number>()
  for (const tensors of adapter.layers) {
    const { name } = tensors
    const place = async () => {
      const { targets } = await planOnnxMerge(model, [{ adapter: stubOf(tensors, adapter), weight: 1 }])
      const [{ target, source }] = targets.values()
      const { start } = target.parts[0]
      const key = `${source.name} ${start} ${target.isInputMajor}`
      const normDelta = normDeltas?.get(name)
      let relativeChange: number | null = null
      if (normDelta !== undefined) {
        if (!norms.has(key)) norms.set(key, await normOfTarget(model, { target, source }))
        const base = norms.get(key)!
        relativeChange = base > 0 ? normDelta / base : null
      }
      return { name, tensor: source.name, shape: target.shape, dtype: target.dtype, problem: null, relativeChange }
    }
    parts.push(await placed(name, place))
  }
  for (const part of adapter.parts().filter(({ name }) => !adapter.layers.some((layer) => layer.name === name))) {
    parts.push(
      await placed(part.name, async () => {
        requireKinds({ config: adapter.config, parts: () => [part] }, MERGED_KINDS, 'merging into ONNX models')
        const { targets } = await planOnnxMerge(model, [{ adapter: valuesStub(part.name, adapter), weight: 1 }])
        const [{ target, source }] = targets.values()
        const { shape, dtype } = target
        return { name: part.name, tensor: source.name, shape, dtype, problem: null, relativeChange: null }
      }),
    )
  }
  return fitReport({
    base: model.name,
    kind: 'onnx',
    parts,
    vocabulary: vocabularyOf(model),
    isTied: null,
    problems: [],
    notes: [],
  })
}

async function placed(name: string, place: () => Promise<PartFit>): Promise<PartFit> {
  try {
    return await place()
  } catch (error) {
    if (!(error instanceof LowrankError)) throw error
    return missingPart(name, error.message)
  }
}

/** An adapter of one layer of these shapes: planning needs no values. */
function stubOf({ name, kind, config, A, B, magnitude, biasB }: LayerTensors, adapter: AdapterFile): LoraAdapter {
  const stub = new LoraAdapter({ ...adapter.config, rank: config.rank, rankPattern: {} })
  const zero = ({ shape }: TensorInfo) => ({ data: new Float32Array(elementCount(shape)), shape })
  const matrix = ({ shape }: TensorInfo) => zeros(shape[0], shape[1], new Float32Array())
  const vectors = { magnitude: magnitude && zero(magnitude).data, biasB: biasB && zero(biasB).data }
  if (kind === 'convolution') stub.addConvolution(name, zero(A), zero(B), vectors)
  else if (kind === 'embedding') stub.addEmbedding(name, matrix(A), matrix(B), vectors)
  else stub.addFactors(name, matrix(A), matrix(B), vectors)
  return stub
}

/** An adapter that replaces one tensor, or rows of one. */
function valuesStub(name: string, { config, replacements, tokenRows }: AdapterFile): LoraAdapter {
  const stub = new LoraAdapter(config)
  const stored = ({ dtype, shape }: TensorInfo) => ({ dtype, shape, data: new Uint8Array() })
  const [whole, rows] = [replacements.get(name), tokenRows.get(name)]
  if (whole !== undefined) stub.replacements.set(name, { ...whole, ...stored(whole.info) })
  if (rows !== undefined) stub.tokenRows.set(name, { ...rows, ...stored(rows.info) })
  return stub
}

/** Frobenius norm of the layer's part of its weight, in pieces. */
async function normOfTarget(model: OnnxModel, { target, source }: Target): Promise<number> {
  const { dtype, isInputMajor, parts } = target
  const [rows, columns] = target.shape
  const { start, weightB } = parts[0]
  const rowBytes = columns * (dtype === 'F32' ? 4 : 2)
  const pieceRows = Math.max(1, Math.floor(PIECE_BYTES / rowBytes))
  let sum = 0
  for (let row = 0; row < rows; row += pieceRows) {
    const count = Math.min(pieceRows, rows - row)
    const values = decodeFloats(await model.readPart(source, row * rowBytes, count * rowBytes), dtype)
    for (let at = 0; at < values.length; at++) {
      const feature = isInputMajor ? at % columns : row + Math.floor(at / columns)
      if (feature >= start && feature < start + weightB.shape[0]) sum += values[at] * values[at]
    }
  }
  return Math.sqrt(sum)
}

/** What the output embedding has as outputs, as far as the graph tells. */
function vocabularyOf({ proto }: OnnxModel): number | null {
  return findLinears(new Graph(proto)).find(({ isHead }) => isHead)?.d ?? null
}
