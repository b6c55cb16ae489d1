// Puts LoRA branches beside linear layers: y' = y + s·(x·Aᵀ)·Bᵀ (Hu et al. 2021, arXiv 2106.09685). Factors are graph
// inputs, so that they can be swapped or trained between runs.

import { groupBy } from '../../core/base/group.js'
import { DataType } from '../../onnx/format/tensors.js'
import { Builder, sharedValue, type Value } from '../../onnx/view/builder.js'
import type { Graph } from '../../onnx/view/graph.js'
import { valueInfo } from '../../onnx/view/value-info.js'
import type { Linear } from '../match/linears.js'
import { ownInput, type SiteNeeds, type SiteRole, sharedInput, siteInput } from './sites.js'

/** The graph input (1) with the number of rows of the batch, for graphs with a Gemm. */
export const ROWS_INPUT = 'lora/rows'

const FACTORS: ReadonlySet<SiteRole> = new Set(['A', 'B'])

/**
 * Adapts linear layers for inference. Each module gets inputs named by {@link siteInput}: A (r, k) and s·B (d, r) of
 * any rank r, even 0 if the runtime takes empty tensors. Layers with the same name share inputs. m modules that read
 * the same value have the same rank r ≥ 1 and one input for all A, stacked as (m·r, k): {@link sharedInput}. When a
 * text grows by one token, every input and small product costs more time than its few numbers. Every run also feeds:
 *
 * - {@link ownInput}, (1) or (rows, 1, m·r): 1 for columns of x·Aᵀ to keep, else 0. So rows of a batch can have
 *   different adapters, and each adapter is read once for all of them. A Where takes more time than this product
 * - scale and shift, (d) or (rows, 1, d): y' = scale ⊙ y + (x·Aᵀ)·(s·Bᵀ) + shift; B then includes DoRA's scale
 * - weight, (k, m) or (rows, k, m), together with scale and shift: x·weight is added. m is d, or 1 to add nothing
 * - columns (d) in int64: which of the m columns of x·weight to add to each output
 *
 * @param needs inputs of each module. Default: its factors
 * @param isInputMajor takes Aᵀ (k, m·r) and s·Bᵀ (r, d) instead, for runtimes without FusedMatMul. ONNX Runtime's
 *   FusedMatMul reads factors as PEFT stores them, and is faster for a few rows
 * @returns the modules that share A, and whether the graph got {@link ROWS_INPUT}, which it needs because a Gemm reads
 *   all rows of a batch as one matrix
 */
export function injectLora(
  graph: Graph,
  linears: readonly Linear[],
  needs: SiteNeeds = new Map(),
  isInputMajor = false,
) {
  const g = new Builder(graph, 'lora')
  const product = (x: Value, factor: Value) =>
    isInputMajor ? g.matmul(x, factor) : g.op('com.microsoft:FusedMatMul', [x, factor], { transB: 1 })
  const rolesOf = ({ name }: Linear) => needs.get(name) ?? FACTORS
  const withA = linears.filter((linear) => rolesOf(linear).has('A'))
  if (!isInputMajor && withA.length > 0) graph.requireOpset('com.microsoft', 1)
  const shared = modulesOfOneInput(withA)
  const sharing = new Map(shared.flatMap((modules) => modules.map((module) => [module, modules] as const)))
  for (const modules of shared) graph.inputs.push(valueInfo(sharedInput(modules), DataType.FLOAT))
  for (const linear of new Map(linears.map((entry) => [entry.name, entry])).values()) {
    for (const role of rolesOf(linear)) {
      if (role === 'A' && sharing.has(linear.name)) continue
      graph.inputs.push(valueInfo(siteInput(linear.name, role), role === 'columns' ? DataType.INT64 : DataType.FLOAT))
    }
  }
  const modulesOf = ({ name }: Linear) => sharing.get(name) ?? [name]
  for (const name of new Set(withA.map((linear) => ownInput(modulesOf(linear))))) {
    graph.inputs.push(valueInfo(name, DataType.FLOAT))
  }
  const takesRows = linears.some(isMatrix)
  if (takesRows) graph.inputs.push(valueInfo(ROWS_INPUT, DataType.INT64, [1]))
  /** (n, width) → (rows, n / rows, width) */
  const byRow = (x: Value, width: number) => g.reshape(x, g.concat([ROWS_INPUT, g.int([-1, width])], 0))
  const inputs = new Map<string, Value>()
  const inputOf = (linear: Linear) =>
    sharedValue(inputs, readerKey(linear), () => {
      const x = isMatrix(linear) ? byRow(linear.input, linear.k) : linear.input
      return linear.dataType === DataType.FLOAT ? x : g.cast(x, DataType.FLOAT)
    })
  const lows = new Map<string, readonly Value[]>()
  /** x·Aᵀ */
  const lowOf = (linear: Linear): Value => {
    const modules = modulesOf(linear)
    const low = () => g.mul(product(inputOf(linear), sharedInput(modules)), ownInput(modules))
    if (modules.length === 1) return low()
    const key = `${readerKey(linear)} ${modules}`
    const split = { axis: -1, ...(graph.opset() >= 18 && { num_outputs: modules.length }) }
    const parts = lows.get(key) ?? g.node('Split', [low()], split, modules.length).output
    lows.set(key, parts)
    return parts[modules.indexOf(linear.name)]
  }
  const makeDelta: MakeDelta = (linear, base) => {
    const { name, dataType, d } = linear
    const roles = rolesOf(linear)
    const [isFloat, isFlat] = [dataType === DataType.FLOAT, isMatrix(linear)]
    const x = inputOf(linear)
    const typed = (value: Value) => (isFloat ? value : g.cast(value, dataType))
    const terms: Value[] = []
    if (roles.has('A')) terms.push(product(lowOf(linear), siteInput(name, 'B')))
    if (roles.has('weight')) {
      const replaced = g.matmul(x, siteInput(name, 'weight'))
      const columns = siteInput(name, 'columns')
      terms.push(roles.has('columns') ? g.op('Gather', [replaced, columns], { axis: -1 }) : replaced)
    }
    const flat = (value: Value) => (isFlat ? g.reshape(value, g.int([-1, d])) : value)
    if (base === undefined) return flat(typed(terms[0]))
    if (!isAffine(roles)) return g.add(base, flat(typed(terms[0])))
    if (roles.has('shift')) terms.push(siteInput(name, 'shift'))
    const rows = isFlat ? byRow(base, d) : base
    const scaled = roles.has('scale') ? g.mul(rows, typed(siteInput(name, 'scale'))) : rows
    return flat(terms.reduce((sum, term) => g.add(sum, typed(term)), scaled))
  }
  adaptNodes(graph, g, linears, makeDelta, (linear) => isAffine(rolesOf(linear)))
  return { takesRows, shared }
}

function readerKey(linear: Linear): string {
  return `${isMatrix(linear) ? 'rows' : 'all'} ${linear.dataType} ${linear.input}`
}

/** Groups of two or more modules that read the same values in all of their calls. */
function modulesOfOneInput(linears: readonly Linear[]): string[][] {
  const readBy = groupBy(linears, ({ name }) => name)
  const groups = groupBy(readBy.keys(), (name) => [...new Set(readBy.get(name)!.map(readerKey))].sort().join('\n'))
  return [...groups.values()].filter(({ length }) => length > 1).map((modules) => modules.sort())
}

function isAffine(roles: ReadonlySet<SiteRole>): boolean {
  return roles.has('scale') || roles.has('shift')
}

function isMatrix({ form }: Linear): boolean {
  return form.name === 'Gemm'
}

/** Appends base + delta (…, d), or the delta alone if there is no base. */
export type MakeDelta = (linear: Linear, base: Value | undefined) => Value

/** Gives the sum to readers of the layers' outputs. `needsBase`: layers whose delta depends on the base. */
export function adaptNodes(
  graph: Graph,
  g: Builder,
  linears: readonly Linear[],
  makeDelta: MakeDelta,
  needsBase: (linear: Linear) => boolean = () => false,
): void {
  for (const parts of groupBy(linears, ({ node }) => node).values()) {
    const [{ last, fused }] = parts
    graph.putBehind(last.output[0], (base) =>
      fused === undefined ? makeDelta(parts[0], base) : addToParts(g, base, parts, makeDelta, parts.some(needsBase)),
    )
  }
}

/** Adapts several layers that share one output, each in its columns. */
function addToParts(
  g: Builder,
  base: Value,
  parts: readonly Linear[],
  makeDelta: MakeDelta,
  needsBase: boolean,
): Value {
  const sorted = [...parts].sort((a, b) => start(a) - start(b))
  const width = sorted[0].fused?.width ?? 0
  if (!needsBase && sorted.reduce((sum, { d }) => sum + d, 0) === width) {
    const deltas = sorted.map((part) => makeDelta(part, undefined))
    return g.add(base, g.concat(deltas, -1))
  }
  const pieces: Value[] = []
  let at = 0
  const slice = (from: number, to: number) => g.slice(base, from, to, -1)
  for (const part of sorted) {
    if (start(part) > at) pieces.push(slice(at, start(part)))
    at = start(part) + part.d
    pieces.push(makeDelta(part, slice(start(part), at)))
  }
  if (at < width) pieces.push(slice(at, width))
  return g.concat(pieces, -1)
}

function start(linear: Linear): number {
  return linear.fused?.start ?? 0
}
