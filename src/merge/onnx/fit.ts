// How an adapter fits an ONNX model: each of its parts is planned on its own, as a merge would plan it, so that each
// problem is known.

import type { ByteSource } from '../../base/bytes.js'
import { LowrankError } from '../../base/errors.js'
import { elementCount, zeros } from '../../base/tensor.js'
import type { OnnxModel } from '../../formats/onnx/model.js'
import type { TensorInfo } from '../../formats/safetensors.js'
import { roleOf } from '../../graph/graph-file.js'
import { findLinears } from '../../graph/match/linears.js'
import { mayHold, unusedPoolers } from '../../graph/match/spread.js'
import { Graph } from '../../graph/view/graph.js'
import { LoraAdapter } from '../../lora/adapter.js'
import { GRAPH_PARTS, requireHandled } from '../../lora/requirements.js'
import type { OpenAdapter } from '../../peft/open.js'
import type { OpenPart } from '../../peft/tensors.js'
import { type FitReport, fitReport, normOf, type PartFit, partFit } from '../fit.js'
import { findHead } from './head.js'
import { planOnnxMerge } from './plan.js'

/** Options of a look at a fit. */
interface FitOnnxOptions {
  /** config.json, which tells the base's head. */
  readonly config?: Readonly<Record<string, unknown>> | undefined
  /** ‖s·B·A‖ by layer: then the weights are read, and each layer has its relative change. */
  readonly normDeltas?: ReadonlyMap<string, number> | undefined
  /** The graph's file, which tells its role. Default: the model's own. */
  readonly path?: string | undefined
}

/** How an adapter fits one graph. */
export async function fitOnnx(
  model: OnnxModel,
  adapter: OpenAdapter,
  { config = {}, normDeltas, path = model.fileName }: FitOnnxOptions = {},
): Promise<FitReport> {
  const parts: PartFit[] = []
  const problems: string[] = []
  const notes: string[] = []
  const names = adapter.parts().map(({ name }) => name)
  const unused = unusedPoolers(findLinears(new Graph(model.proto)), names)
  if (unused.length > 0) notes.push(`it is left out, because nothing would read what it gives: ${unused.join(', ')}`)
  const head = await headOf(model, adapter, config).catch((error: unknown) => {
    if (!(error instanceof LowrankError)) throw error
    problems.push(error.message)
  })
  const fitOf = async (part: OpenPart): Promise<PartFit> => {
    const { name } = part
    if (unused.includes(name)) return partFit(name, undefined)
    if (part.kind === 'replacement' && head?.isReplaced === false && head.placed.tensors.has(name)) {
      return partFit(name, { ...part.tensors.weight, name })
    }
    requireHandled({ config: adapter.config, parts: () => [part] }, GRAPH_PARTS, 'merging into ONNX models')
    // A part of a head alone is no head.
    const about = head?.placed.tensors.has(name) ? {} : { config }
    const sources: ByteSource[] = [...model.files.values()]
    const stub = [{ adapter: stubOf(part, adapter), weight: 1 }]
    const { targets, branches } = await planOnnxMerge(model, stub, about, sources)
    const [target] = targets.values()
    if (target === undefined) {
      // A layer whose weight is integers gets a branch beside it.
      const { weight, k, d, form } = branches[0].linear
      return partFit(name, { name: weight, shape: [d, k], dtype: form.name })
    }
    const fit = partFit(name, target.base)
    const normDelta = 'config' in part ? normDeltas?.get(name) : undefined
    if (normDelta === undefined) return fit
    const norm = await normOf(sources[target.source], target.base, target.layers[0])
    return { ...fit, relativeChange: norm > 0 ? normDelta / norm : null }
  }
  for (const part of adapter.parts()) {
    const name = part.kind === 'token-rows' ? part.module : part.name
    if (!mayHold(roleOf(path), part.name)) {
      parts.push(partFit(part.name, undefined, `${part.name}: it belongs to another graph than ${path}`))
      continue
    }
    const fit = await fitOf(part).catch((error: unknown) => {
      if (!(error instanceof LowrankError)) throw error
      return partFit(name, undefined, error.message)
    })
    parts.push(fit)
  }
  if (head?.isReplaced === false) {
    notes.push(`it brings a head, which the base has not: ${[...head.placed.tensors].join(', ')}`)
  }
  return fitReport({
    base: model.name,
    kind: 'onnx',
    parts,
    vocabulary: vocabularyOf(model),
    isTied: null,
    problems,
    notes,
  })
}

/** How an adapter fits a model of several graphs: each of its parts needs a place in one of them. */
export function joinFits(base: string, fits: readonly FitReport[]): FitReport {
  if (fits.length === 1) return fits[0]
  const { fits: _, ...first } = fits[0]
  const parts = first.parts.map((part, i) => {
    const all = fits.map((fit) => fit.parts[i])
    return (
      all.find(({ problem }) => problem === null) ?? all.find(({ problem }) => !/another graph/.test(problem!)) ?? part
    )
  })
  const vocabulary = fits.map((fit) => fit.vocabulary).find((rows) => rows !== null) ?? null
  return fitReport({ ...first, base, parts, vocabulary })
}

/** Finds the place of the adapter's head. Throws MismatchError when it does not fit. */
async function headOf(model: OnnxModel, adapter: OpenAdapter, config: Readonly<Record<string, unknown>>) {
  const graph = new Graph(model.proto)
  const shapes = new Map(
    adapter.parts().flatMap((part) => (part.kind === 'replacement' ? [[part.name, part.tensors.weight.shape]] : [])),
  )
  return findHead(graph, findLinears(graph), config, { config: adapter.config, shapeOf: (name) => shapes.get(name) })
}

/** An adapter of one part of these shapes: planning needs no values. */
function stubOf(part: OpenPart, { config }: OpenAdapter): LoraAdapter {
  const { name } = part
  if (part.kind === 'replacement' || part.kind === 'token-rows') {
    const stub = new LoraAdapter(config)
    const { dtype, shape } = part.tensors.weight
    const values = { dtype, shape, data: new Uint8Array() }
    if (part.kind === 'replacement') stub.addReplacement(name, values, { isTrained: part.isTrained, key: part.key })
    else stub.addTokenRows(part.module, part.indices, values)
    return stub
  }
  const { weightA, weightB, magnitude, biasB } = part.tensors
  const stub = new LoraAdapter({ ...config, rank: part.config.rank, rankPattern: {} })
  const zero = ({ shape }: TensorInfo) => ({ data: new Float32Array(elementCount(shape)), shape })
  const matrix = ({ shape }: TensorInfo) => zeros(shape[0], shape[1], new Float32Array())
  const vectors = { magnitude: magnitude && zero(magnitude).data, biasB: biasB && zero(biasB).data }
  if (part.kind === 'convolution') stub.addConvolution(name, zero(weightA), zero(weightB), vectors)
  else if (part.kind === 'embedding') stub.addEmbedding(name, matrix(weightA), matrix(weightB), vectors)
  else stub.addFactors(name, matrix(weightA), matrix(weightB), vectors)
  return stub
}

/** The number of outputs of the output embedding, as far as the graph tells. */
function vocabularyOf({ proto }: OnnxModel): number | null {
  return findLinears(new Graph(proto)).find(({ isHead }) => isHead)?.d ?? null
}
