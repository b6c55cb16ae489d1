// Fused operators with inputs, for tests that compare them with their lowered form.

import type { RuntimeTensor } from '../../src/api/node.js'
import { Random } from '../../src/core/base/random.js'
import type { Attributes } from '../../src/onnx/view/attributes.js'
import { int32s, ints, normals } from './toolkit.js'

export interface LoweringCase {
  op: string
  note: string
  /** undefined: an optional input left out. */
  inputs: readonly (RuntimeTensor | undefined)[]
  /** Inputs for the fused operator, if the runtime has no kernel for the form of `inputs`. */
  fusedInputs?: readonly RuntimeTensor[]
  attributes?: Attributes
  /** The outputs to compare. Default: the first. */
  outputs?: readonly number[]
  opset?: number
  /** The number of tokens of each row. Values of (B, S, …) after them are padding and may differ. */
  lengths?: readonly number[]
}

const random = new Random(3, 'lowering')
export const x = (...dims: number[]) => normals(random, dims)
/** The weights of a norm. */
const gamma = (size: number) => ({
  ...x(size),
  data: Float32Array.from({ length: size }, () => 1 + 0.1 * random.normal()),
})
const within = (low: number, high: number, ...dims: number[]) => ({
  ...x(...dims),
  data: Float32Array.from(x(...dims).data as Float32Array, () => low + (high - low) * random.uniform()),
})
const zeros = (...dims: number[]) => within(0, 0, ...dims)
const bytes = (...dims: number[]): RuntimeTensor => {
  const data = Uint8Array.from(within(0, 256, ...dims).data, Math.floor)
  return { type: 'uint8', data, dims }
}
/** Vectors of length 1 along the last axis; the two last become one. */
const unit = (...dims: number[]): RuntimeTensor => {
  const size = dims[dims.length - 1]
  const data = Float32Array.from(x(...dims).data as Float32Array)
  for (let start = 0; start < data.length; start += size) {
    const norm = Math.hypot(...data.subarray(start, start + size))
    for (let i = start; i < start + size; i++) data[i] /= norm
  }
  return { type: 'float32', data, dims: [...dims.slice(0, -2), dims[dims.length - 2] * size] }
}
/** The same vector of length 1 at all tokens. */
const repeated = (...dims: number[]): RuntimeTensor => {
  const { data } = unit(1, 1, dims[dims.length - 1])
  return {
    type: 'float32',
    data: Float32Array.from(x(...dims).data as Float32Array, (_, i) => Number(data[i % data.length])),
    dims,
  }
}
const float = (value: number) => ({ float: value })
const scalar32 = (value: number) => int32s([value], [])
const bools = (values: number[], dims: number[]): RuntimeTensor => ({
  type: 'bool',
  data: Uint8Array.from(values),
  dims,
})

/**
 * Inputs of GroupQueryAttention: rows of `lengths` tokens, padded to `sequence`, and an empty cache of `width`
 * channels.
 */
export const grouped = (
  [query, key, value]: readonly (RuntimeTensor | undefined)[],
  lengths: number[],
  sequence: number,
  [keyHeads, width]: number[],
  rest: readonly (RuntimeTensor | undefined)[] = [],
) => [
  query,
  key,
  value,
  x(lengths.length, keyHeads, 0, width),
  x(lengths.length, keyHeads, 0, width),
  int32s(
    lengths.map((length) => length - 1),
    [lengths.length],
  ),
  scalar32(sequence),
  ...rest,
]

export const GQA = 'com.microsoft:GroupQueryAttention'
export const SKIP = 'com.microsoft:SkipLayerNormalization'
export const MHA = 'com.microsoft:MultiHeadAttention'
const caches = (rows: number, half: number) => [x(rows, half), x(rows, half)]

/** (B, S, heads·d) tensors as one (B, S, heads, parts, d): a form that the fused operator has on GPUs only. */
const pack = (parts: readonly RuntimeTensor[], heads: number): RuntimeTensor => {
  const [batch, sequence, width] = parts[0].dims
  const d = width / heads
  const dims = [batch, sequence, heads, parts.length, d]
  const data = Float32Array.from({ length: parts.length * parts[0].data.length }, (_, i) => {
    const part = Math.floor(i / d) % parts.length
    return Number(parts[part].data[Math.floor(i / (d * parts.length)) * d + (i % d)])
  })
  return { type: 'float32', data, dims }
}
export const SKIPPED = [x(2, 3, 16), x(2, 3, 16), gamma(16)]
export const PARTS = [x(2, 5, 32), x(2, 5, 32), x(2, 5, 32)]

export const CASES: readonly LoweringCase[] = [
  ...['none', 'silu'].map((activation) => ({
    op: 'com.microsoft:CausalConvWithState',
    note: activation,
    inputs: [x(2, 3, 5), x(3, 1, 3), activation === 'none' ? undefined : x(3)],
    attributes: { activation },
  })),
  {
    op: GQA,
    note: 'a window of 3 keys',
    inputs: grouped([x(2, 7, 32), x(2, 7, 16), x(2, 7, 16)], [7, 5], 7, [2, 8]),
    attributes: { num_heads: 4, kv_num_heads: 2, local_window_size: 3 },
    lengths: [7, 5],
  },
  {
    op: GQA,
    note: 'separate inputs, right padding',
    inputs: grouped([x(3, 5, 32), x(3, 5, 16), x(3, 5, 16)], [5, 2, 4], 5, [2, 8]),
    attributes: { num_heads: 4, kv_num_heads: 2, scale: float(0.3) },
    lengths: [5, 2, 4],
  },
  {
    op: GQA,
    note: 'packed, rotary by halves, present keys and values',
    inputs: grouped([x(2, 5, 128), undefined, undefined], [5, 5], 5, [2, 16], caches(9, 8)),
    attributes: { num_heads: 4, kv_num_heads: 2, do_rotary: 1 },
    outputs: [0, 1, 2],
  },
  {
    op: GQA,
    note: 'rotary by pairs, right padding, one key head',
    inputs: grouped([x(2, 4, 48), x(2, 4, 16), x(2, 4, 16)], [4, 3], 4, [1, 16], caches(9, 8)),
    attributes: { num_heads: 3, kv_num_heads: 1, do_rotary: 1, rotary_interleaved: 1 },
    lengths: [4, 3],
  },
  {
    op: GQA,
    note: 'part of a head rotated',
    inputs: grouped([x(2, 4, 128), x(2, 4, 64), x(2, 4, 64)], [4, 4], 4, [2, 32], caches(9, 8)),
    attributes: { num_heads: 4, kv_num_heads: 2, do_rotary: 1 },
  },
  {
    op: GQA,
    note: 'as many key heads, softcap',
    inputs: grouped([x(2, 5, 32), x(2, 5, 32), x(2, 5, 32)], [5, 4], 5, [4, 8]),
    attributes: { num_heads: 4, kv_num_heads: 4, softcap: float(1.5) },
    outputs: [0, 1, 2],
    lengths: [5, 4],
  },
  {
    op: GQA,
    note: 'positions and a bias',
    inputs: grouped(
      [x(2, 4, 64), x(2, 4, 32), x(2, 4, 32)],
      [4, 4],
      4,
      [2, 16],
      // Both rows have the same positions, because the CPU's kernel counts on from the first position of the first row.
      [...caches(9, 8), ints([2, 3, 4, 5, 2, 3, 4, 5], [2, 4]), x(2, 4, 4, 4)],
    ),
    attributes: { num_heads: 4, kv_num_heads: 2, do_rotary: 1 },
  },
  {
    op: GQA,
    note: 'softcap and a bias for all heads',
    inputs: grouped(
      [x(2, 4, 32), x(2, 4, 16), x(2, 4, 16)],
      [4, 4],
      4,
      [2, 8],
      [undefined, undefined, undefined, x(2, 1, 4, 4)],
    ),
    attributes: { num_heads: 4, kv_num_heads: 2, softcap: float(2) },
  },

  { op: MHA, note: 'plain', inputs: [x(2, 5, 32), x(2, 5, 32), x(2, 5, 32)], attributes: { num_heads: 4 } },
  {
    op: MHA,
    note: 'causal, scaled, biased',
    inputs: [x(2, 5, 32), x(2, 5, 32), x(2, 5, 32), x(96)],
    attributes: { num_heads: 4, unidirectional: 1, scale: float(0.2) },
  },
  {
    op: MHA,
    note: 'cross attention with padded keys and an attention bias',
    inputs: [
      x(2, 3, 32),
      x(2, 5, 32),
      x(2, 5, 32),
      undefined,
      int32s([1, 1, 1, 1, 1, 1, 1, 0, 0, 0], [2, 5]),
      x(1, 4, 3, 5),
    ],
    attributes: { num_heads: 4 },
  },
  {
    op: MHA,
    note: 'a mask for each query',
    inputs: [x(2, 2, 32), x(2, 3, 32), x(2, 3, 32), undefined, int32s([1, 0, 0, 1, 1, 0, 1, 1, 1, 0, 1, 1], [2, 2, 3])],
    attributes: { num_heads: 4 },
  },
  {
    op: MHA,
    note: 'numbers of keys',
    inputs: [...PARTS, undefined, int32s([5, 2], [2])],
    attributes: { num_heads: 4, mask_filter_value: float(-3.4028234663852886e38) },
  },
  {
    op: MHA,
    note: 'packed',
    inputs: [pack(PARTS, 4)],
    fusedInputs: PARTS,
    attributes: { num_heads: 4 },
  },
  {
    op: MHA,
    note: 'packed keys and values',
    inputs: [PARTS[0], pack(PARTS.slice(1), 4)],
    fusedInputs: PARTS,
    attributes: { num_heads: 4 },
  },
  {
    op: MHA,
    note: 'keys of cross attention',
    inputs: [x(2, 5, 32), x(2, 4, 3, 8), x(2, 4, 3, 8)],
    attributes: { num_heads: 4 },
  },
  {
    op: MHA,
    note: 'an empty cache',
    inputs: [x(2, 5, 32), x(2, 5, 32), x(2, 5, 32), undefined, undefined, undefined, x(2, 4, 0, 8), x(2, 4, 0, 8)],
    attributes: { num_heads: 4 },
    outputs: [0, 1, 2],
  },

  {
    op: 'com.microsoft:Attention',
    note: 'padded',
    inputs: [x(2, 4, 16), x(16, 48), x(48), int32s([1, 1, 1, 1, 1, 1, 0, 0], [2, 4])],
    attributes: { num_heads: 2 },
  },
  {
    op: 'com.microsoft:Attention',
    note: 'numbers of keys, values of another width',
    inputs: [x(2, 4, 16), x(16, 56), x(56), int32s([4, 2], [2])],
    attributes: { num_heads: 2, qkv_hidden_sizes: [16, 16, 24] },
  },
  {
    op: 'com.microsoft:Attention',
    note: 'causal, with a bias',
    inputs: [x(2, 4, 16), x(16, 48), x(48), undefined, undefined, x(2, 2, 4, 4)],
    attributes: { num_heads: 2, unidirectional: 1, scale: float(0.4) },
  },

  {
    op: 'Attention',
    note: 'grouped and causal',
    inputs: [x(2, 5, 32), x(2, 5, 16), x(2, 5, 16)],
    attributes: { q_num_heads: 4, kv_num_heads: 2, is_causal: 1, scale: float(0.3) },
    opset: 23,
  },
  {
    op: 'Attention',
    note: 'four axes, a mask of truths',
    inputs: [x(2, 4, 3, 8), x(2, 2, 5, 8), x(2, 2, 5, 8), bools([1, 1, 0, 0, 1, 1, 1, 0, 1, 0, 1, 1, 1, 1, 1], [3, 5])],
    opset: 23,
  },
  {
    op: 'Attention',
    note: 'a float mask of four axes, an empty cache, softcap',
    inputs: [x(2, 5, 32), x(2, 5, 16), x(2, 5, 16), x(2, 4, 5, 5), x(2, 2, 0, 8), x(2, 2, 0, 8)],
    attributes: { q_num_heads: 4, kv_num_heads: 2, softcap: float(1.5) },
    outputs: [0, 1, 2],
    opset: 23,
  },

  {
    op: 'com.microsoft:SkipSimplifiedLayerNormalization',
    note: 'with the sum',
    inputs: [x(2, 3, 16), x(2, 3, 16), gamma(16)],
    attributes: { epsilon: float(1e-5) },
    outputs: [0, 3],
  },
  {
    op: 'com.microsoft:SkipSimplifiedLayerNormalization',
    note: 'with a bias, one skip for all',
    inputs: [x(2, 3, 16), x(3, 16), gamma(16), x(16)],
  },
  {
    op: 'com.microsoft:SkipLayerNormalization',
    note: 'with the sum',
    inputs: [x(2, 3, 16), x(2, 3, 16), gamma(16), x(16), x(16)],
    attributes: { epsilon: float(1e-5) },
    outputs: [0, 3],
  },
  { op: 'com.microsoft:SkipLayerNormalization', note: 'bare', inputs: [x(2, 3, 16), x(2, 3, 16), gamma(16)] },
  { op: 'SoftmaxCrossEntropyLoss', note: 'mean', inputs: [x(4, 5), ints([0, 4, 2, 2], [4])] },
  {
    op: 'SoftmaxCrossEntropyLoss',
    note: 'sum of weighted classes, with the logarithms',
    inputs: [x(3, 5), int32s([1, 0, 4], [3]), within(0.5, 2, 5)],
    attributes: { reduction: 'sum' },
    outputs: [0, 1],
  },
  {
    op: 'SoftmaxCrossEntropyLoss',
    note: 'mean of weighted classes along an axis, with ignored targets',
    inputs: [x(2, 5, 3), ints([1, -100, 4, -100, 0, 3], [2, 3]), within(0.5, 2, 5)],
    attributes: { ignore_index: -100 },
  },
  {
    op: 'NegativeLogLikelihoodLoss',
    note: 'each target, some ignored',
    inputs: [within(-4, -1, 4, 5), ints([3, 1, 1, 0], [4])],
    attributes: { reduction: 'none', ignore_index: 1 },
  },
  { op: 'com.microsoft:BiasGelu', note: 'plain', inputs: [x(2, 3, 16), x(16)] },

  // 4 experts of 16 → 6 (or two times 6) → 16
  ...(['relu', 'silu', 'gelu', 'identity', 'swiglu'] as const).map((kind): LoweringCase => {
    const isGated = kind === 'swiglu'
    const wide = isGated ? 12 : 6
    const gated = {
      swiglu_fusion: 1,
      activation_alpha: float(1.7),
      activation_beta: float(1),
      swiglu_limit: float(0.8),
    }
    return {
      ...{
        op: 'com.microsoft:MoE',
        note: kind,
        inputs: [x(2, 3, 16), x(6, 4), x(4, wide, 16), x(4, wide), x(4, 16, 6)],
      },
      attributes: { k: 2, activation_type: kind, normalize_routing_weights: isGated ? 1 : 0, ...(isGated && gated) },
    }
  }),

  // 4 experts of 32 → two times 16 → 32
  ...([4, 8] as const).map((bits): LoweringCase => {
    const gated = {
      swiglu_fusion: 1,
      activation_alpha: float(1.7),
      activation_beta: float(1),
      swiglu_limit: float(0.8),
    }
    const [first, second] = [
      [4, 32, (32 * bits) / 8],
      [4, 32, (16 * bits) / 8],
    ]
    const scales = (blocks: number) => within(0.01, 0.1, 4, 32, ...(bits === 4 ? [blocks] : []))
    return {
      op: 'com.microsoft:QMoE',
      note: `${bits} bits, a scale for each ${bits === 4 ? 'block' : 'row'}`,
      inputs: [...[x(2, 3, 32), x(6, 4), bytes(...first), scales(2), x(4, 32), bytes(...second), scales(1), x(4, 32)]],
      attributes: {
        ...{ k: 2, activation_type: 'swiglu', normalize_routing_weights: 1, expert_weight_bits: bits, ...gated },
        ...(bits === 4 && { block_size: 16 }),
      },
    }
  }),

  // Two full chunks, and a third that is not full.
  ...(['linear', 'gated', 'delta', 'gated_delta'] as const).flatMap((rule): LoweringCase[] => {
    const [decay, beta] = [within(-4, 0, 2, 70, 4), within(0, 2, 2, 70, 4)]
    const keys = unit(2, 70, 2, 8)
    const inputs = [x(2, 70, 16), keys, x(2, 70, 24), zeros(2, 4, 8, 6), decay, beta]
    const attributes = { q_num_heads: 2, kv_num_heads: 4, update_rule: rule }
    const op = 'com.microsoft:LinearAttention'
    return [
      { op, note: rule, inputs, attributes, outputs: [0, 1] },
      {
        op,
        note: `${rule}, a query for each value`,
        inputs: [x(2, 70, 32), ...inputs.slice(1)],
        attributes: { ...attributes, q_num_heads: 4, scale: float(0.2) },
      },
    ]
  }),
  {
    op: 'com.microsoft:LinearAttention',
    note: 'keys that repeat, and decays that overflow where they are not masked',
    inputs: [
      x(1, 64, 8),
      repeated(1, 64, 8),
      x(1, 64, 8),
      zeros(1, 1, 8, 8),
      within(-4, -4, 1, 64, 1),
      within(1, 1, 1, 64, 1),
    ],
    attributes: { q_num_heads: 1, kv_num_heads: 1, scale: float(1) },
  },
  {
    op: 'com.microsoft:LinearAttentionGate',
    note: 'decay and beta',
    inputs: [x(2, 3, 4), x(4), within(-3, 0, 4), x(2, 3, 4)],
    outputs: [0, 1],
  },
  { op: 'com.microsoft:LinearAttentionGate', note: 'decay alone', inputs: [x(2, 3, 4), x(4), within(-3, 0, 4)] },
  {
    op: 'com.microsoft:GatedRMSNorm',
    note: 'silu',
    inputs: [x(2, 3, 16), gamma(8), x(2, 3, 16)],
    attributes: { epsilon: float(1e-3) },
  },
  ...[0, 1].map(
    (layout): LoweringCase => ({
      op: 'com.microsoft:MRotaryEmbedding',
      note: `layout ${layout}, three positions, part of a head`,
      inputs: [x(2, 3, 32), ints([0, 1, 2, 3, 4, 5, 5, 4, 3, 2, 1, 0, 1, 1, 1, 2, 2, 2], [3, 2, 3]), ...caches(6, 4)],
      attributes: { num_heads: 2, rotary_embedding_dim: 8, mrope_section: [1, 1, 2], mrope_layout: layout },
    }),
  ),
]
