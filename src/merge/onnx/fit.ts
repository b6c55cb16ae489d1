// How an adapter fits an ONNX model: each of its parts is planned on its own, as a merge would plan it, so that each
// problem is known.

import type { ByteSource } from '../../base/bytes.js'
import { LowrankError } from '../../base/errors.js'
import { elementCount, zeros } from '../../base/tensor.js'
import type { OnnxModel } from '../../formats/onnx/model.js'
import type { TensorInfo } from '../../formats/safetensors.js'
import { roleOf } from '../../graph/graph-file.js'
import { findLinears } from '../../graph/match/linears.js'
import { mayHold } from '../../graph/match/spread.js'
import { Graph } from '../../graph/view/graph.js'
import { LoraAdapter } from '../../lora/adapter.js'
import { GRAPH_PARTS, requireHandled } from '../../lora/requirements.js'
import type { OpenAdapter } from '../../peft/open.js'
import type { OpenPart } from '../../peft/tensors.js'
import { type FitReport, fitReport, missingPart, type PartFit } from '../fit.js'
import { Chunks, type OutputTensor, segmentsOf } from '../plan/layout.js'
import { ChunkMerger, mergeChunk } from '../weight.js'
import { findHead } from './head.js'
import { type OnnxMergePlan, planOnnxMerge } from './plan.js'

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
  const head = await headOf(model, adapter, config).catch((error: unknown) => {
    if (!(error instanceof LowrankError)) throw error
    problems.push(error.message)
  })
  const norms = new Map<string, number>()
  for (const part of adapter.parts()) {
    const { name } = part
    if (!mayHold(roleOf(path), name)) {
      parts.push(missingPart(name, `${name}: it belongs to another graph than ${path}`))
      continue
    }
    if (part.kind === 'replacement' && head?.isReplaced === false && head.placed.tensors.has(name)) {
      const { dtype, shape } = part.tensors.weight
      parts.push({ name, tensor: name, shape, dtype, problem: null, relativeChange: null })
      continue
    }
    const place = async () => {
      requireHandled({ config: adapter.config, parts: () => [part] }, GRAPH_PARTS, 'merging into ONNX models')
      // A part of a head alone is no head.
      const about = head?.placed.tensors.has(name) ? {} : { config }
      const sources: ByteSource[] = [...model.files.values()]
      const stub = [{ adapter: stubOf(part, adapter), weight: 1 }]
      const { targets, branches } = await planOnnxMerge(model, stub, about, sources)
      if (targets.size === 0) return branchFit(name, branches[0])
      const [target] = targets.values()
      const { name: tensor, shape, dtype } = target.base
      const normDelta = 'config' in part ? normDeltas?.get(name) : undefined
      let relativeChange: number | null = null
      if (normDelta !== undefined) {
        const [{ region, isInputMajor }] = target.layers
        const key = JSON.stringify([tensor, region, isInputMajor])
        if (!norms.has(key)) norms.set(key, await baseNorm(target, sources))
        const base = norms.get(key)!
        relativeChange = base > 0 ? normDelta / base : null
      }
      return { name, tensor, shape, dtype, problem: null, relativeChange }
    }
    parts.push(await placed(part.kind === 'token-rows' ? part.module : name, place))
  }
  return fitReport({
    base: model.name,
    kind: 'onnx',
    parts,
    vocabulary: vocabularyOf(model),
    isTied: null,
    problems,
    notes:
      head?.isReplaced === false
        ? [`it brings a head, which the base has not: ${[...head.placed.tensors].join(', ')}`]
        : [],
  })
}

/** A layer whose weight is integers gets a branch beside it. */
function branchFit(name: string, { linear }: OnnxMergePlan['branches'][number]): PartFit {
  const { weight, k, d, form } = linear
  return { name, tensor: weight, shape: [d, k], dtype: form.name, problem: null, relativeChange: null }
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

async function placed(name: string, place: () => Promise<PartFit>): Promise<PartFit> {
  try {
    return await place()
  } catch (error) {
    if (!(error instanceof LowrankError)) throw error
    return missingPart(name, error.message)
  }
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

/** Frobenius norm of the layer's part of its weight. */
async function baseNorm(target: OutputTensor, sources: readonly ByteSource[]): Promise<number> {
  const layers = target.layers.map((layer) => ({ ...layer, scales: undefined }))
  const merger = new ChunkMerger(false)
  let sum = 0
  for (const segment of segmentsOf({ ...target, layers }, 0)) {
    if (segment.weight === undefined) continue
    const chunks = new Chunks(segment)
    for (let i = 0; i < chunks.count; i++) {
      const { changes } = await mergeChunk(merger, chunks.at(i), sources)
      for (const { baseSquares } of changes) sum += baseSquares
    }
  }
  return Math.sqrt(sum)
}

/** The number of outputs of the output embedding, as far as the graph tells. */
function vocabularyOf({ proto }: OnnxModel): number | null {
  return findLinears(new Graph(proto)).find(({ isHead }) => isHead)?.d ?? null
}
