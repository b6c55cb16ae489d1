// Makes a decoder that only reads whole texts, with the inputs of an encoder, as programs feed them to classifiers.

import { DataType } from '../../onnx/format/tensors.js'
import { Builder, sharedValue, type Value } from '../../onnx/view/builder.js'
import type { Graph } from '../../onnx/view/graph.js'
import { type CacheEntry, cacheEntry, isCacheInput } from './cache.js'
import { type RoleInput, splitInputs } from './roles.js'

/** Computes all inputs besides tokens and mask in the graph: an empty cache, positions, and 0 for counts. */
export function readWholeTexts(graph: Graph): void {
  const { roles, others } = splitInputs(graph)
  const g = new Builder(graph, 'inputs')
  const ids = roles.find(({ role }) => role === 'inputIds')
  const mask = roles.find(({ role }) => role === 'attentionMask')
  const replace = (input: Value, value: Value) => {
    graph.replaceUses(input, value)
    graph.inputs = graph.inputs.filter(({ name }) => name !== input)
  }
  const empty = ({ type, dims, axis }: CacheEntry) => {
    const shape = dims.map((dim, i) =>
      i === axis ? g.int([0]) : dim === undefined ? g.length(ids!.name, 0) : g.int([dim]),
    )
    const value = g.op('ConstantOfShape', [g.concat(shape, 0)])
    return type === 'float16' ? g.cast(value, DataType.FLOAT16) : value
  }
  const positions = () => {
    if (mask === undefined) {
      const row = g.op('Range', [g.int(0), g.op('Squeeze', [g.length(ids!.name, 1)]), g.int(1)])
      return g.expand(row, g.shape(ids!.name))
    }
    const counted = g.op('CumSum', [g.cast(mask.name, DataType.INT64), g.int(1)])
    return g.op('Max', [g.sub(counted, g.int(1)), g.int(0)])
  }
  const computed: Partial<Record<RoleInput['role'], (input: RoleInput) => Value>> = {
    positionIds: positions,
    logitsToKeep: ({ rank }) => g.int(rank === 0 ? 0 : [0]),
    usesCache: () => g.cast(g.int(0), DataType.BOOL),
    pastLength: ({ rank }) => g.int(rank === 0 ? 0 : [0]),
  }
  const made = new Map<string, Value>()
  for (const input of others.filter(isCacheInput)) {
    const entry = cacheEntry(graph, input)
    const value = sharedValue(made, `${entry.type} ${entry.dims.join()}`, () => empty(entry))
    replace(input.name, value)
  }
  for (const input of roles) {
    const value = computed[input.role]?.(input)
    if (value !== undefined) replace(input.name, input.type === 'int32' ? g.cast(value, DataType.INT32) : value)
  }
}
