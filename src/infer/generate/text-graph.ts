// Facts about a graph that writing texts needs: its inputs, which prompts share a batch, and on which side their rows
// are filled up.

import type { CacheEntry } from '../../graph/inputs/cache.js'
import { HIDDEN_STATES, inputFamily, STATES_MASK } from '../../graph/inputs/family.js'
import { rotarySwitches } from '../../graph/inputs/rotary-switch.js'
import { type TokenInputs, tokenInputs, VECTORS } from '../../graph/inputs/tokens.js'
import { checkCausal } from '../../graph/match/continues.js'
import { logitsDims, logitsName } from '../../graph/match/linears.js'
import { type Model, startToken } from '../../graph/model-folder.js'
import { type Graph, readGraph } from '../../graph/view/graph.js'
import { requireDecoder } from '../graphs.js'
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
  /** In the cache. */
  readonly tokenBytes: number
  readonly weightBytes: number
}

export function textGraphOf(model: Model): TextGraph {
  return model.onnx.once(textGraphOf, () => readTextGraph(model))
}

function readTextGraph(model: Model): TextGraph {
  const { onnx } = model
  const graph = readGraph(onnx)
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
  return {
    inputs,
    logits: logitsName(graph),
    padding,
    source,
    takesVectors,
    shares,
    takesPieces: shares && !roles.some(({ role }) => role === 'usesCache'),
    tokenBytes: cache.reduce((sum, entry) => sum + bytesOf(entry), 0),
    weightBytes: [...onnx.files.values()].reduce((sum, { byteLength }) => sum + byteLength, 0),
  }
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
  if (inputFamily(graph)?.encoderGraph !== 'separate') return undefined
  const { generationConfig, config } = model
  const forced = [generationConfig.forced_bos_token_id, config.forced_bos_token_id].find(Number.isSafeInteger)
  const startIds = [startToken(model), ...(forced === undefined ? [] : [forced as number])]
  const inputs = graph.inputs.map(({ name }) => name).filter((name) => name === HIDDEN_STATES || name === STATES_MASK)
  return { startIds, inputs: new Set(inputs) }
}

/**
 * The side on which a graph's rows can be filled up. A plain cache needs a mask that hides what fills it up, and
 * positions that do not count it; where the graph takes only one of them, what it makes of the other cannot be told.
 */
export function paddingOf(graph: Graph, { cache, roles }: Pick<TokenInputs, 'cache' | 'roles'>): Padding {
  // A convolution reads the tokens that fill a row up, too.
  if (cache.some(({ axis }) => axis === undefined)) return 'none'
  // A long text would take a short one along to the other side.
  if (rotarySwitches(graph).length > 0) return 'none'
  const isOfLast = logitsDims(graph)?.at(-2) === 1
  if (cache.length === 0 || countsKeysFromLeft(graph)) return isOfLast ? 'none' : 'right'
  const has = (name: string) => roles.some(({ role }) => role === name)
  return has('attentionMask') && has('positionIds') ? 'left' : 'none'
}

/** True if some GroupQueryAttention gets the number of each row's keys, which it takes for the first ones. */
export function countsKeysFromLeft(graph: Graph): boolean {
  return graph.nodes.some(({ opType, input }) => {
    if (opType !== 'GroupQueryAttention') return false
    // A number that is made of the mask's shape alone is the same for all rows.
    const behind = graph.madeOf(input[5] ?? '', (maker) => maker.opType !== 'Shape')
    return Array.from(behind).some(([value]) => value === 'attention_mask' || value === 'seqlens_k')
  })
}

/** Prompts of similar length share a batch, so that little is filled up; of one length where nothing can be. */
export function batchesOf(lengths: readonly number[], batchSize: number, padding: Padding): number[][] {
  const order = [...lengths.keys()].sort((a, b) => lengths[a] - lengths[b] || a - b)
  const batches: number[][] = []
  for (const index of order) {
    const last = batches.at(-1)
    const fits = padding !== 'none' || (last !== undefined && lengths[last[0]] === lengths[index])
    if (last !== undefined && last.length < batchSize && fits) last.push(index)
    else batches.push([index])
  }
  return batches
}
