// The arrays for the sites of a graph. If rows have different adapters, the factors of all adapters stand side by side,
// and each row keeps the columns of its adapter. If sites share A, it is padded with zeros to the largest rank.

import { isList } from '../../core/base/options.js'
import { transpose } from '../../core/base/tensor.js'
import { ownInput, type Site, type SiteGroup, type SiteRole, sharedInput, siteInput } from '../../model/inject/sites.js'
import type { Feeds, RuntimeTensor } from '../../onnx/runtime/runtime.js'
import type { ReplacedValues, SiteFactors } from './site-factors.js'

type Slot = SiteFactors | undefined

const ALL = float(Float32Array.of(1), [1])

/** Names the input that says which columns of a group's product each row keeps, if the group has such an input. */
export function ownInputOf(group: SiteGroup): string | undefined {
  const [{ kind, roles }] = group
  return kind === 'linear' && roles.has('A') ? ownInput(group.map(({ module }) => module)) : undefined
}

/**
 * @param slots for each site, its factors in each distinct mix
 * @param rowOf for each row, the index of its mix. Default: all rows have the first
 * @param idleRank the rank of the zeros that are fed if nothing is added
 */
export function groupFeeds(
  group: SiteGroup,
  slots: readonly (readonly Slot[])[],
  rowOf?: readonly number[],
  idleRank: 0 | 1 = 1,
): Feeds {
  const [{ k, roles }] = group
  const keptInput = ownInputOf(group)
  const isBeside = keptInput !== undefined && rowOf !== undefined
  const used = rowOf === undefined ? slots.map((all) => all.slice(0, 1)) : slots
  // If sites share A, its product is split between them, and ONNX Runtime cannot split an empty tensor. Nor can it
  // multiply empty stacks of matrices.
  const least = rowOf === undefined && group.length === 1 && !group[0].isStack ? idleRank : 1
  const rank = Math.max(...used.flat().map((slot) => slot?.rank || least))
  const feeds: Feeds = Object.assign({}, ...group.map((site, i) => siteFeeds(site, slots[i], rowOf, rank)))
  if (!roles.has('A') || isBeside) return feeds
  if (keptInput !== undefined) return Object.assign(feeds, besideFeeds(group, used, [rank]), { [keptInput]: ALL })
  feeds[sharedInput(group.map(({ module }) => module))] = stackedA(k, used[0], rank)
  return feeds
}

/**
 * Puts the factors of all mixes side by side: A (m·W, k) for the m sites together, and B (d, W) for each site. If there
 * is only one mix, its arrays are used as they are.
 *
 * @param ranks the room for each mix, at least the rank of its factors. W is their sum
 */
export function besideFeeds(group: SiteGroup, slots: readonly (readonly Slot[])[], ranks: readonly number[]): Feeds {
  const [{ k }] = group
  const width = ranks.reduce((sum, rank) => sum + rank, 0)
  const whole = slots.map((all) => all.find((slot) => slot?.rank === width))
  const a = (group.length === 1 && whole[0]?.weightA) || new Float32Array(group.length * width * k)
  const feeds: Feeds = { [sharedInput(group.map(({ module }) => module))]: float(a, [group.length * width, k]) }
  for (const [i, { module, d }] of group.entries()) {
    const b = whole[i]?.weightB ?? new Float32Array(d * width)
    let start = 0
    for (const [slot, factors] of slots[i].entries()) {
      if (factors !== undefined && a !== factors.weightA) a.set(factors.weightA, (i * width + start) * k)
      if (factors !== undefined && b !== factors.weightB) copyColumns(factors.weightB, factors.rank, b, width, start)
      start += ranks[slot]
    }
    feeds[siteInput(module, 'B')] = float(b, [d, width])
  }
  return feeds
}

/** Marks with 1 the columns that each row keeps, (rows, 1, m·W): the columns of its mix in each of the m parts. */
export function ownColumns(m: number, ranks: readonly number[], rowOf: readonly number[]): RuntimeTensor {
  const width = ranks.reduce((sum, rank) => sum + rank, 0)
  const data = new Float32Array(rowOf.length * m * width)
  for (const [row, slot] of rowOf.entries()) {
    const start = ranks.slice(0, slot).reduce((sum, rank) => sum + rank, 0)
    for (let at = row * m * width; at < (row + 1) * m * width; at += width) {
      data.fill(1, at + start, at + start + ranks[slot])
    }
  }
  return float(data, [rowOf.length, 1, m * width])
}

function siteFeeds(site: Site, slots: readonly Slot[], rowOf: readonly number[] | undefined, rank: number): Feeds {
  const { module, roles, d, base } = site
  const feeds: Feeds = {}
  const feed = (role: SiteRole, tensor: RuntimeTensor) => {
    if (roles.has(role)) feeds[siteInput(module, role)] = tensor
  }
  const rows = rowOf?.map((slot) => slots[slot])
  const vector = (role: SiteRole, idle: number | Float32Array, valuesOf: (slot: Slot) => Float32Array | undefined) => {
    if (!roles.has(role)) return
    const without = typeof idle === 'number' ? new Float32Array(d).fill(idle) : idle
    feed(role, vectors(valuesOf(slots[0]), rows?.map(valuesOf), without))
  }
  vector('scale', 1, (slot) => slot?.scale)
  vector('shift', 0, (slot) => slot?.shift)
  if (site.kind === 'vector') {
    vector('values', base!, (slot) => slot?.replaced?.data)
    return feeds
  }
  if (site.kind === 'lookup') feed('B', matricesB(d, rows ?? slots[0], rank))
  if (roles.has('weight')) Object.assign(feeds, weights(site, slots[0], rows))
  if (roles.has('rowOf')) Object.assign(feeds, tables(site, rows === undefined ? slots.slice(0, 1) : slots))
  return feeds
}

/** Transposes the factors of linear layers for a graph that multiplies with MatMul: Aᵀ (k, m·r) and s·Bᵀ (r, d). */
export function inputMajor(groups: readonly SiteGroup[], feeds: Feeds): Feeds {
  const factors = groups.flatMap((group) => {
    const modules = group.map(({ module }) => module)
    return group[0].kind === 'linear' ? [sharedInput(modules), ...modules.map((module) => siteInput(module, 'B'))] : []
  })
  const turned = factors.flatMap((name) => {
    if (feeds[name] === undefined) return []
    const [rows, columns] = feeds[name].dims
    const { data } = transpose({ data: feeds[name].data as Float32Array, shape: [rows, columns] })
    return [[name, float(data as Float32Array, [columns, rows])] as const]
  })
  return { ...feeds, ...Object.fromEntries(turned) }
}

function float(data: Float32Array, dims: number[]): RuntimeTensor {
  return { type: 'float32', data, dims }
}

function int(values: BigInt64Array): RuntimeTensor {
  return { type: 'int64', data: values, dims: [values.length] }
}

/** Makes a tensor (d), or (rows, 1, d) if rows differ. */
function vectors(
  values: Float32Array | undefined,
  rows: readonly (Float32Array | undefined)[] | undefined,
  idle: Float32Array,
): RuntimeTensor {
  const d = idle.length
  if (rows === undefined) return float(values ?? idle, [d])
  const data = new Float32Array(rows.length * d)
  rows.forEach((row, i) => void data.set(row ?? idle, i * d))
  return float(data, [rows.length, 1, d])
}

/** Stacks Aᵀ (k, r) of an embedding for all t mixes: (t·k, r). */
function stackedA(k: number, slots: readonly Slot[], rank: number): RuntimeTensor {
  const [first] = slots
  if (slots.length === 1 && first?.rank === rank) return float(first.weightA, [k, rank])
  const data = new Float32Array(slots.length * k * rank)
  slots.forEach((slot, i) => {
    if (slot !== undefined) copyColumns(slot.weightA, slot.rank, data.subarray(i * k * rank), rank, 0)
  })
  return float(data, [slots.length * k, rank])
}

/** Makes s·Bᵀ of an embedding: (r, d), or (rows, r, d) if rows differ. */
function matricesB(d: number, slots: Slot | readonly Slot[], rank: number): RuntimeTensor {
  const rows = isList(slots) ? slots : [slots]
  const data = new Float32Array(rows.length * rank * d)
  rows.forEach((row, i) => void (row !== undefined && data.set(row.weightB, i * rank * d)))
  return float(data, isList(slots) ? [rows.length, rank, d] : [rank, d])
}

/** Replaced weights of a linear layer, (k, m) or (rows, k, m), and which of the m columns each output takes. */
function weights({ module, roles, k, d }: Site, first: Slot, rows: readonly Slot[] | undefined): Feeds {
  const [weight, columns] = [siteInput(module, 'weight'), siteInput(module, 'columns')]
  const all = (rows ?? [first]).flatMap((row) => row?.replaced ?? [])
  const map = new BigInt64Array(roles.has('columns') ? d : 0)
  const feeds = (data: Float32Array, dims: number[]): Feeds => {
    return { [weight]: float(data, dims), ...(roles.has('columns') && { [columns]: int(map) }) }
  }
  if (all.length === 0) return feeds(new Float32Array(k), [k, 1])
  const isWhole = all.some(({ lines }) => lines === undefined)
  const lines = isWhole ? [] : [...new Set(all.flatMap((values) => values.lines ?? []))]
  for (let i = 0; isWhole && i < map.length; i++) map[i] = BigInt(i)
  for (const [i, line] of lines.entries()) map[line] = BigInt(i + 1)
  const width = isWhole ? d : 1 + lines.length
  if (rows === undefined) return feeds(all[0].data, [k, width])
  const at = new Map(lines.map((line, i) => [line, i + 1]))
  const data = new Float32Array(rows.length * k * width)
  rows.forEach((row, i) => {
    const replaced = row?.replaced
    const target = data.subarray(i * k * width, (i + 1) * k * width)
    if (replaced?.lines === undefined) target.set(replaced?.data ?? [])
    else moveColumns(replaced.data, replaced.lines, target, width, (line) => (isWhole ? line : at.get(line)!))
  })
  return feeds(data, [rows.length, k, width])
}

/** Copies columns 1, 2, … of a matrix (k, 1 + m) to their places in (k, width). */
function moveColumns(
  from: Float32Array,
  lines: readonly number[],
  to: Float32Array,
  width: number,
  columnOf: (line: number) => number,
): void {
  const fromWidth = lines.length + 1
  const columns = lines.map(columnOf)
  for (let row = 0; row < from.length / fromWidth; row++) {
    for (let j = 0; j < columns.length; j++) to[row * width + columns[j]] = from[row * fromWidth + j + 1]
  }
}

/** Stacks the replaced rows of an embedding, (1 + m, D), and says which row each token takes. Row 0: not replaced. */
function tables({ module, k, d }: Site, slots: readonly Slot[]): Feeds {
  const rowOf = new BigInt64Array(slots.length * k)
  const parts: ReplacedValues[] = []
  let count = 1
  slots.forEach((factors, slot) => {
    const replaced = factors?.replaced
    if (replaced === undefined) return
    const { data, lines } = replaced
    const m = data.length / d - 1
    for (let i = 0; i < m; i++) rowOf[slot * k + (lines?.[i] ?? i)] = BigInt(count + i)
    count += m
    parts.push(replaced)
  })
  const names = { rows: siteInput(module, 'rows'), rowOf: siteInput(module, 'rowOf') }
  if (parts.length === 1) return { [names.rows]: float(parts[0].data, [count, d]), [names.rowOf]: int(rowOf) }
  const rows = new Float32Array(count * d)
  let start = d
  for (const { data } of parts) {
    rows.set(data.subarray(d), start)
    start += data.length - d
  }
  return { [names.rows]: float(rows, [count, d]), [names.rowOf]: int(rowOf) }
}

/** Copies a matrix with r columns into columns of a wider one. `set` would be slower for so few numbers a row. */
export function copyColumns(from: Float32Array, r: number, to: Float32Array, width: number, start: number): void {
  for (let i = 0, at = start; i < from.length; at += width) {
    for (let j = 0; j < r; j++) to[at + j] = from[i++]
  }
}
