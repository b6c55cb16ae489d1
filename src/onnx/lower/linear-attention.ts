// Replaces linear attention by ordinary operators that work in chunks of tokens. Inside a chunk, tokens are handled
// together by matrix products; a state is passed on from chunk to chunk. Yang et al. 2024 (arXiv 2406.06484,
// 2412.06464), Dao and Gu 2024 (arXiv 2405.21060).

import type { GraphProto } from '../format/tensors.js'
import { once, range } from '../gradients/context.js'
import { lastSwapped } from '../gradients/matmul.js'
import { floatAttribute, intAttribute, stringAttribute } from '../view/attributes.js'
import { Builder, type Value } from '../view/builder.js'
import { valueInfo } from '../view/value-info.js'
import { widthOf } from '../view/widths.js'
import { CHUNK } from './chunks.js'
import { dimsIn, type Lowering, type LoweringContext, refuse } from './context.js'

/** A number whose exponential is 0. */
const LOWEST = -1e30

/**
 * Moves heads before tokens, and chunks to the front: (B, C, L, G, R, …) → (C, B, G, R, L, …), for C chunks of L
 * tokens, and G key heads that each serve R heads.
 */
const TO_HEADS = [1, 0, 3, 4, 2]
const FROM_HEADS = [1, 0, 4, 2, 3, 5]

interface Recurrence {
  /** (B, T, heads·k), the queries already scaled. */
  readonly query: Value
  readonly key: Value
  /** (B, T, heads·v) */
  readonly value: Value
  /** (B, T, heads): the logarithm of the factor by which the state decays before each token. */
  readonly decay: Value | undefined
  /** (B, T, heads): how much of the state's value for a key is replaced. Without it, values are only added. */
  readonly beta: Value | undefined
  readonly heads: number
  /** The number of query heads, which divides `heads`. Each serves consecutive heads. */
  readonly queryHeads: number
  readonly keyHeads: number
  readonly keySize: number
  readonly valueSize: number
}

/**
 * With g the decay: S ← e^g·S, then S ← S + β·k ⊗ (v − Sᵀ·k), or S ← S + k ⊗ v without β; the output is Sᵀ·q. Returns
 * (B, T, heads·v), and the last state (B, heads, k, v).
 *
 * With c the sums of g inside a chunk and D_ij = e^(c_i − c_j) for i ≥ j, a chunk gives o = (q·kᵀ ∘ D)·u + e^c·q·S and
 * leaves S' = e^(c_last)·S + (k·e^(c_last − c))ᵀ·u. Without β, u is v. With it, u = (I + A)⁻¹·(β·v − β·e^c·k·S), where
 * A is the strictly lower part of β·(k·kᵀ ∘ D).
 */
function recur(context: LoweringContext, recurrence: Recurrence): [output: Value, state: Value] {
  const { g, shared } = context
  const { heads, keyHeads, queryHeads, keySize, valueSize } = recurrence
  const group = heads / keyHeads
  const length = g.length(recurrence.query, 1)
  const size = g.int([CHUNK])
  const missing = g.sub(g.mul(g.div(g.add(length, g.int([CHUNK - 1])), size), size), length)
  const pads = g.concat([g.int([0, 0, 0, 0]), missing, g.int([0])], 0)
  /** (B, T, …) → (C, B, G, R, L, …). The last chunk is padded with tokens of zeros, which do not change the state. */
  const chunks = (x: Value, ...axes: number[]) => {
    const parts = g.reshape(g.op('Pad', [x, pads]), g.int([0, -1, CHUNK, ...axes]))
    return g.transpose(parts, [...TO_HEADS, ...range(axes.length - 2).map((i) => i + 5)])
  }
  const mask = (at: (i: number, j: number) => boolean, name: string) =>
    shared(`chunk ${name}`, () =>
      g.float(
        range(CHUNK * CHUNK).map((i) => (at(Math.floor(i / CHUNK), i % CHUNK) ? 1 : 0)),
        [CHUNK, CHUNK],
      ),
    )
  const seen = mask((i, j) => i >= j, 'seen')
  const swap = (x: Value) => g.transpose(x, lastSwapped(6))
  const column = (x: Value) => g.unsqueeze(x, [-1])

  const q = chunks(recurrence.query, keyHeads, queryHeads / keyHeads, keySize)
  const k = chunks(recurrence.key, keyHeads, 1, keySize)
  const v = chunks(recurrence.value, keyHeads, group, valueSize)
  const beta = recurrence.beta && column(chunks(recurrence.beta, keyHeads, group))
  const c = recurrence.decay && g.op('CumSum', [chunks(recurrence.decay, keyHeads, group), g.int(4)])
  const last = c && g.slice(c, CHUNK - 1, CHUNK, 4)
  const differences = c && g.sub(column(c), g.unsqueeze(c, [-2]))
  // The mask comes before the exponential, which would overflow above the diagonal.
  const between =
    differences === undefined
      ? seen
      : g.op('Exp', [g.where(g.op('Greater', [seen, g.float(0)]), differences, g.float(LOWEST))])
  const decayed = (x: Value) => (c === undefined ? x : g.mul(x, column(g.op('Exp', [c]))))

  const weights = g.mul(g.matmul(q, swap(k)), between)
  const toEnd = swap(c === undefined ? k : g.mul(k, column(g.op('Exp', [g.sub(last as Value, c)]))))
  const factor = last && column(g.op('Exp', [last]))
  let [update, reader] = [v, decayed(q)]
  let carried = factor
  if (beta !== undefined) {
    const strict = mask((i, j) => i > j, 'strict')
    const system = g.mul(g.mul(g.matmul(k, swap(k)), g.mul(between, strict)), beta)
    const inverse = invert(context, system, mask)
    update = g.matmul(inverse, g.mul(beta, v))
    const read = g.matmul(inverse, g.mul(beta, decayed(k)))
    reader = g.sub(reader, g.matmul(weights, read))
    const kept = shared(`identity ${keySize}`, () => identity(g, keySize))
    carried = g.sub(factor === undefined ? kept : g.mul(factor, kept), g.matmul(toEnd, read))
  }
  const [state, states] = carryOn(context, carried, g.matmul(toEnd, update), beta !== undefined)
  const o = g.transpose(g.add(g.matmul(weights, update), g.matmul(reader, states)), FROM_HEADS)
  const all = g.reshape(o, g.int([0, -1, heads * valueSize]))
  return [g.op('Slice', [all, g.int([0]), length, g.int([1])]), g.reshape(state, g.int([0, heads, keySize, valueSize]))]
}

function identity(g: Builder, size: number): Value {
  return g.float(
    range(size * size).map((i) => (i % (size + 1) === 0 ? 1 : 0)),
    [size, size],
  )
}

/**
 * Appends (I + A)⁻¹ of matrices A (…, {@link CHUNK}, CHUNK). Only the part of A below the diagonal is read. If M holds
 * the inverses of blocks on the diagonal, M − M·A·M holds the inverses of blocks of twice the size; of A, only the
 * lower left quarters of these blocks are used.
 */
function invert(
  { g, shared, gradient }: LoweringContext,
  a: Value,
  constant: (at: (i: number, j: number) => boolean, name: string) => Value,
): Value {
  const corners = (size: number) => {
    const isCorner = (i: number, j: number) =>
      Math.floor(i / (2 * size)) === Math.floor(j / (2 * size)) && i % (2 * size) >= size && j % (2 * size) < size
    return g.mul(a, constant(isCorner, `corners ${size}`))
  }
  let inverse = g.sub(
    shared(`identity ${CHUNK}`, () => identity(g, CHUNK)),
    corners(1),
  )
  for (let size = 2; size < CHUNK; size *= 2) {
    inverse = g.sub(inverse, g.matmul(g.matmul(inverse, corners(size)), inverse))
  }
  // y = (I + A)⁻¹      dA = −yᵀ·dy·yᵀ
  gradient(inverse, [a], ({ g, dy }) => [
    () => {
      const turned = g.transpose(inverse, lastSwapped(6))
      return g.neg(g.matmul(g.matmul(turned, dy), turned))
    },
  ])
  return inverse
}

/**
 * Computes S₀ = 0, Sᵢ₊₁ = Fᵢ·Sᵢ + Nᵢ along the first axis. Returns the last state, and all states before it. The
 * factors are matrices (C, …, k, k) or numbers (C, …, 1, 1). Undefined: 1.
 */
function carryOn(
  { g, gradient }: LoweringContext,
  factors: Value | undefined,
  addends: Value,
  areMatrices: boolean,
): [last: Value, states: Value] {
  if (factors === undefined) {
    const states = g.op('CumSum', [addends, g.int(0)], { exclusive: 1 })
    return [g.reduceSum(addends, [0], 0), states]
  }
  const [last, states] = scan(g, factors, addends, areMatrices)
  // Γ of the last is 0, Γᵢ₋₁ = Fᵢᵀ·Γᵢ + dSᵢ      dNᵢ = Γᵢ   dFᵢ = Γᵢ·Sᵢᵀ
  gradient(last, [factors, addends], ({ g, dys: [, dy] }) => {
    const turn = (x: Value) => g.transpose(x, lastSwapped(6))
    const dAddends = once(
      () => scan(g, areMatrices ? turn(factors) : factors, dy as Value, areMatrices, { isBackward: true })[1],
    )
    return [
      () => (areMatrices ? g.matmul(dAddends(), turn(states)) : g.reduceSum(g.mul(dAddends(), states), [-2, -1])),
      dAddends,
    ]
  })
  return [last, states]
}

function scan(
  g: Builder,
  factors: Value,
  addends: Value,
  areMatrices: boolean,
  { isBackward = false } = {},
): readonly Value[] {
  const by = new Builder(g.graph.newBody(), g.graph.freshName(`${g.scope}/state`), g.floatType)
  const declared = (name: Value) =>
    valueInfo(
      name,
      g.floatType,
      range(5).map((axis) => `${name} ${axis}`),
    )
  const [state, factor, addend] = ['before', 'factor', 'addend'].map((name) =>
    by.graph.freshName(`${by.scope}/${name}`),
  )
  const next = by.add(areMatrices ? by.matmul(factor, state) : by.mul(factor, state), addend)
  by.graph.inputs = [state, factor, addend].map(declared)
  by.graph.outputs = [next, by.op('Identity', [state])].map(declared)
  const body = by.graph.toModel().graph as GraphProto
  const start = g.expand(g.float(0), g.slice(g.shape(addends), 1, 6, 0))
  const direction = Number(isBackward)
  const directions = { scan_input_directions: [direction, direction], scan_output_directions: [direction] }
  return g.node('Scan', [start, factors, addends], { body, num_scan_inputs: 2, ...directions }, 2).output
}

/** https://github.com/microsoft/onnxruntime/blob/main/docs/ContribOperators.md#com.microsoft.LinearAttention */
const linearAttention: Lowering = (context) => {
  const { g, node, inputs } = context
  const [query, key, value, past, decay, beta] = inputs
  const rule = stringAttribute(node, 'update_rule', 'gated_delta')
  if (!['linear', 'gated', 'delta', 'gated_delta'].includes(rule))
    refuse(context, `its update_rule ${rule} is not known`)
  if (intAttribute(node, 'state_window', 0) > 0) refuse(context, 'training with its state_window is not implemented')
  if (!key || !value) refuse(context, 'training with query, key and value in one input is not implemented')
  const heads = intAttribute(node, 'kv_num_heads', 0)
  const queryHeads = intAttribute(node, 'q_num_heads', 0)
  const state = past ? dimsIn(g.graph, past) : undefined
  const keySize = state?.[2] ?? (widthOf(g.graph, query) ?? 0) / queryHeads
  const valueSize = state?.[3] ?? (widthOf(g.graph, value) ?? 0) / heads
  if (!(keySize > 0 && valueSize > 0)) {
    refuse(context, 'training needs the sizes of its heads, which the graph does not tell')
  }
  const keyHeads = (widthOf(g.graph, key) ?? queryHeads * keySize) / keySize
  const divides = [heads / keyHeads, queryHeads / keyHeads].every(Number.isInteger)
  if (!divides || (queryHeads !== keyHeads && queryHeads !== heads)) {
    refuse(
      context,
      `training with ${queryHeads} heads of queries, ${keyHeads} of keys and ${heads} of values is not implemented`,
    )
  }
  const [isGated, isDelta] = [rule.startsWith('gated'), rule.endsWith('delta')]
  const wide = isGated ? widthOf(g.graph, decay) : heads
  if (wide === heads * keySize && keySize > 1) {
    refuse(context, 'training with a decay for each dimension of the keys is not implemented; one for each head is')
  }
  if (isDelta && widthOf(g.graph, beta) === 1 && heads > 1)
    refuse(context, 'training with one beta for all heads is not implemented')
  const scale = floatAttribute(node, 'scale', 0) || 1 / Math.sqrt(keySize)
  return recur(context, {
    ...{ query: scale === 1 ? query : g.mul(query, g.float(scale)), key, value },
    ...{ decay: isGated ? decay : undefined, beta: isDelta ? beta : undefined },
    ...{ heads, queryHeads, keyHeads, keySize, valueSize },
  })
}

export const LINEAR_ATTENTION: Readonly<Record<string, Lowering>> = {
  'com.microsoft:LinearAttention': linearAttention,

  // decay = s·ln(1 + e^(a + b)); beta = σ(c)
  'com.microsoft:LinearAttentionGate': ({ g, inputs: [a, bias, scale, beta] }) => [
    g.mul(g.op('Softplus', [g.add(a, bias)]), scale),
    beta ? g.op('Sigmoid', [beta]) : undefined,
  ],

  // y = the RMS norm of each head of x, times z·σ(z)
  'com.microsoft:GatedRMSNorm': (context) => {
    const { g, node, inputs } = context
    const [x, gamma, z] = inputs
    const size = dimsIn(g.graph, gamma)?.[0]
    if (size === undefined)
      return refuse(context, 'training needs the size of its weight, which the graph does not tell')
    if (stringAttribute(node, 'activation', 'silu') !== 'silu')
      refuse(context, 'training with its activation is not implemented')
    const perHead = (value: Value) => g.reshape(value, g.int([-1, size]))
    const epsilon = { float: floatAttribute(node, 'epsilon', 1e-5) }
    const normalized = g.op('SimplifiedLayerNormalization', [perHead(x), gamma], { axis: -1, epsilon })
    const gate = perHead(z)
    const y = g.mul(normalized, g.mul(gate, g.op('Sigmoid', [gate])))
    return [g.reshape(y, g.shape(x))]
  },
}
