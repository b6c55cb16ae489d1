// Finds out how a graph can write texts: its inputs, whether texts can run together, and the side on which rows are
// padded.

import type { CacheEntry } from '../../model/inputs/cache.js'
import { inputFamily, STATES_MASK } from '../../model/inputs/family.js'
import { rotarySwitches } from '../../model/inputs/rotary-switch.js'
import { type TokenInputs, tokenInputs } from '../../model/inputs/tokens.js'
import { checkCausal } from '../../model/match/continues.js'
import { logitsDims, logitsName } from '../../model/match/linears.js'
import type { Model } from '../../model/model-folder.js'
import { type Graph, readGraph } from '../../onnx/view/graph.js'
import { mainRole, requireDecoder } from '../graphs.js'
import type { Padding, TextForm } from './text-form.js'

export async function textFormOf(model: Model): Promise<TextForm> {
  const { onnx } = model
  const graph = readGraph(onnx)
  requireDecoder(model)
  const family = inputFamily(graph)
  const encoder =
    family?.encoderGraph === 'separate' ? await (await import('./side-graphs.js')).encoderForm(model, graph) : undefined
  if (encoder === undefined) checkCausal(model, graph)
  const takesVectors = family?.reads === 'vectors'
  const embedding = takesVectors ? await (await import('./side-graphs.js')).embeddingForm(model, graph) : undefined
  const inputs = tokenInputs(graph, new Set(embedding?.fed.map(({ name }) => name) ?? encoder?.states))
  const { cache, roles } = inputs
  // With an encoder, prompts are padded for the encoder, and its mask hides the padding.
  const fillable =
    encoder === undefined ? paddingOf(graph, inputs) : encoder.states.includes(STATES_MASK) ? 'right' : 'none'
  // Prompts for models with a recurrent state get no padding, which would change the state. Later steps read a single
  // token, so they need no padding.
  const hasStates = cache.some(({ axis }) => axis === undefined)
  // Products in 8-bit integers take one scale for all rows, so rows would change each other's results.
  const mixesRows = graph.nodes.some(({ opType }) => opType === 'DynamicQuantizeLinear')
  const isAlone = encoder !== undefined || takesVectors || cache.length === 0 || mixesRows
  const shares = !isAlone && fillable !== 'none' && cache.every(({ dims }) => dims[0] === undefined)
  const switches = rotarySwitches(graph)
  // Texts that cannot leave their batch must reach a switch of long RoPE in the same step.
  const cachePadding = switches.length > 0 && !shares ? 'none' : fillable
  return {
    role: mainRole(model),
    ...{ roles, cache, cachePadding, hasStates, shares, switches, encoder, embedding },
    padding: hasStates ? 'none' : cachePadding,
    logits: logitsName(graph),
    takesPieces: shares && !roles.some(({ role }) => role === 'usesCache'),
    tokenBytes: bytesOf(cache.filter(({ axis }) => axis !== undefined)),
    stateBytes: bytesOf(cache.filter(({ axis }) => axis === undefined)),
    weightBytes: [...onnx.files.values()].reduce((sum, { byteLength }) => sum + byteLength, 0),
  }
}

/** Returns the bytes that entries need: entries of a key-value cache for each token, states for each text. */
function bytesOf(cache: readonly CacheEntry[]): number {
  return cache.reduce((sum, { dims, axis, type }) => {
    const size = { float16: 2, float64: 8 }[type as string] ?? 4
    return sum + dims.reduce<number>((product, dim, i) => (i === axis ? product : product * (dim ?? 1)), size)
  }, 0)
}

/**
 * Returns the side on which a graph's rows can be padded. A plain cache can be padded only if the graph takes both a
 * mask, which hides the padding, and positions, which do not count it.
 */
export function paddingOf(graph: Graph, { cache, roles }: Pick<TokenInputs, 'cache' | 'roles'>): Padding {
  const isOfLast = logitsDims(graph)?.at(-2) === 1
  if (cache.length === 0 || countsKeysFromLeft(graph)) return isOfLast ? 'none' : 'right'
  const has = (name: string) => roles.some(({ role }) => role === name)
  return has('attentionMask') && (has('positionIds') || !countsPositions(graph, roles)) ? 'left' : 'none'
}

/** False for attention without positions, as in Granite 4-h: no rotary tables, and only tokens are looked up. */
function countsPositions(graph: Graph, roles: TokenInputs['roles']): boolean {
  const ids = roles.find(({ role }) => role === 'inputIds')?.name
  return graph.nodes.some(({ opType, input: [table, indices] }) => {
    const isTable = opType === 'Gather' && graph.constant(table)?.dims.length === 2
    const readsTokens = () =>
      [...graph.madeOf([indices], (maker) => maker.opType !== 'Shape')].some(([made]) => made === ids)
    return /Rotary|^(Cos|Sin)$/.test(opType) || (isTable && !readsTokens())
  })
}

/** True if a GroupQueryAttention is told how many keys each row has, which it takes to be the first keys. */
export function countsKeysFromLeft(graph: Graph): boolean {
  return graph.nodes.some(({ opType, input }) => {
    if (opType !== 'GroupQueryAttention') return false
    // A number that depends only on the mask's shape would be the same for all rows.
    const makers = graph.madeOf([input[5] ?? ''], (maker) => maker.opType !== 'Shape')
    return Array.from(makers).some(([value]) => value === 'attention_mask' || value === 'seqlens_k')
  })
}
