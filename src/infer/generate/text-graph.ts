// Facts about a graph that writing texts needs.

import type { OnnxModel } from '../../formats/onnx/model.js'
import type { CacheEntry } from '../../graph/inputs/cache.js'
import { HIDDEN_STATES, inputFamily, STATES_MASK } from '../../graph/inputs/family.js'
import { type TokenInputs, tokenInputs, VECTORS } from '../../graph/inputs/tokens.js'
import { checkCausal } from '../../graph/match/continues.js'
import { logitsName } from '../../graph/match/linears.js'
import { type Model, startToken } from '../../graph/model-folder.js'
import { type Graph, readGraph } from '../../graph/view/graph.js'
import { requireDecoder } from '../graphs.js'
import { paddingOf } from './batching.js'
import type { Padding } from './decoding.js'

export interface TextGraph {
  readonly inputs: TokenInputs
  readonly logits: string
  readonly padding: Padding
  readonly source: EncodedSource | undefined
  readonly takesVectors: boolean
  /** Texts of several calls can share its runs. */
  readonly shares: boolean
  readonly takesPieces: boolean
  readonly tokenBytes: number
}

const textGraphs = new WeakMap<OnnxModel, TextGraph>()

export function textGraphOf(model: Model): TextGraph {
  const { onnx } = model
  const known = textGraphs.get(onnx)
  if (known !== undefined) return known
  const graph = readGraph(onnx.proto)
  requireDecoder(model)
  const source = encodedSource(model, graph)
  if (source === undefined) checkCausal(model, graph)
  const takesVectors = inputFamily(graph)?.reads === 'vectors'
  const inputs = tokenInputs(graph, takesVectors ? new Set([VECTORS]) : source?.inputs)
  // Prompts are filled up for the encoder, whose mask hides what fills them up.
  const padding = source === undefined ? paddingOf(graph, inputs) : source.inputs.has(STATES_MASK) ? 'right' : 'none'
  const { cache, roles } = inputs
  // Rows of a product of integers have one scale together.
  const mixesRows = graph.nodes.some(({ opType }) => opType === 'DynamicQuantizeLinear')
  const isAlone = source !== undefined || takesVectors || cache.length === 0 || mixesRows
  const shares = !isAlone && padding !== 'none' && cache.every(({ dims }) => dims[0] === undefined)
  const made: TextGraph = {
    inputs,
    logits: logitsName(graph),
    padding,
    source,
    takesVectors,
    shares,
    takesPieces: shares && !roles.some(({ role }) => role === 'usesCache'),
    tokenBytes: cache.reduce((sum, entry) => sum + bytesOf(entry), 0),
  }
  textGraphs.set(onnx, made)
  return made
}

function bytesOf({ dims, axis, type }: CacheEntry): number {
  const size = { float16: 2, float64: 8 }[type as string] ?? 4
  return dims.reduce<number>((product, dim, i) => (i === axis ? product : product * (dim ?? 1)), size)
}

/** The first tokens of a decoder, and its inputs that an encoder feeds. */
export interface EncodedSource {
  readonly startIds: readonly number[]
  readonly inputs: ReadonlySet<string>
}

function encodedSource(model: Model, graph: Graph): EncodedSource | undefined {
  if (inputFamily(graph)?.behindEncoder !== 'alone') return undefined
  const { generationConfig, config } = model
  const forced = [generationConfig.forced_bos_token_id, config.forced_bos_token_id].find(Number.isSafeInteger)
  const startIds = [startToken(model), ...(forced === undefined ? [] : [forced as number])]
  const inputs = graph.inputs.map(({ name }) => name).filter((name) => name === HIDDEN_STATES || name === STATES_MASK)
  return { startIds, inputs: new Set(inputs) }
}
