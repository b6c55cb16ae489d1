// LoRA adapters as GGUF files for llama.cpp (its convert_lora_to_gguf.py and src/llama-adapter.cpp). llama.cpp multiplies by alpha/r, or
// by 1 where alpha is 0. Its own converter writes lora_alpha alone, and so loses rsLoRA and patterns; here alpha says the scaling where one
// number can, and otherwise the scalings are multiplied into B.

import type { ByteSink } from '../../base/bytes.js'
import { MismatchError, UnsupportedError } from '../../base/errors.js'
import { formatShape, type Matrix } from '../../base/tensor.js'
import type { GgufFloat } from '../../formats/gguf/types.js'
import { type WrittenTensor, type WrittenValue, writeGguf } from '../../formats/gguf/write.js'
import { transpose } from '../../linalg/product.js'
import type { LoraAdapter } from '../../lora/adapter.js'
import type { FactorPair } from '../../lora/delta.js'
import { factorPairs } from '../../lora/spectrum.js'
import { requireHeld } from '../held.js'
import type { GgufBase } from './base.js'
import { noTensor } from './names.js'
import { toGgufOrder } from './permute.js'

/** ‘keep’ writes each layer in its own type. */
export type GgufDtype = GgufFloat | 'keep'

/** A pair of factors for one tensor of the base; several for stacked experts. */
interface GgufPair {
  /** With `.weight`. */
  readonly tensor: string
  readonly pairs: readonly FactorPair[]
  /** Whether the tensor has a dimension of experts, also for one. */
  readonly isStacked: boolean
  readonly scaling: number
  readonly dtype: GgufFloat
  /** Rows of B are in the order of llama.cpp when they are written. */
  readonly heads: number | undefined
  readonly where: string
}

/** What was written. */
export interface GgufReport {
  /** Pairs of tensors. */
  layers: number
  notes: string[]
}

/** A part of an expert's name, with its number. */
const EXPERT = /^(.*)\.experts\.(\d+)\.(\w+)$/

/**
 * Writes a whole file into a sink, which stays the caller's to commit.
 *
 * @throws UnsupportedError naming what GGUF cannot hold; MismatchError for a module that the base does not have, or of another shape
 */
export async function writeGgufAdapter(
  adapter: LoraAdapter,
  base: GgufBase,
  sink: ByteSink,
  dtype: GgufDtype,
): Promise<GgufReport> {
  requireHeld(adapter, ['linear', 'embedding', 'parameter'], 'a GGUF adapter')
  const pairs = stackExperts(adapter.parts('linear', 'embedding', 'parameter').flatMap((part) => pairsOf(part, base)))
  for (const pair of pairs) checkFits(pair, base)
  const alpha = commonAlpha(pairs)
  const metadata = new Map<string, WrittenValue>([
    ['general.architecture', base.names.architecture],
    ['general.type', 'adapter'],
    [
      'general.name',
      adapter.config.baseModel === undefined ? 'LoRA adapter' : `LoRA adapter for ${adapter.config.baseModel}`,
    ],
    ['adapter.type', 'lora'],
    ['adapter.lora.alpha', { f32: alpha ?? 0 }],
  ])
  const halves = new Set<string>()
  const tensors = pairs.flatMap((pair) => writtenTensors(pair, dtype === 'keep' ? pair.dtype : dtype, alpha, halves))
  await writeGguf(sink, metadata, tensors)
  return {
    layers: pairs.length,
    notes: [
      ...(alpha === undefined ? ['layers have different scalings: they are multiplied into B, and alpha is 0'] : []),
      ...(halves.size > 0
        ? [`${halves.size} tensors have rows that no blocks of 32 fill, and are f16 in place of q8_0`]
        : []),
    ],
  }
}

type Part = ReturnType<LoraAdapter['parts']>[number] & { kind: 'linear' | 'embedding' | 'parameter' }

function pairsOf(part: Part, base: GgufBase): GgufPair[] {
  const { names } = base
  const { name, scaling, dtype, weightA, weightB } = part
  const own = { scaling, dtype, where: name, heads: undefined, isStacked: false }
  if (part.kind === 'parameter') {
    const pairs = factorPairs(weightA, weightB, part.experts)
    return parameterPairs(name, pairs, base).map(([module, split]) => {
      return { ...own, tensor: tensorOf(module, name, base), pairs: split, isStacked: true }
    })
  }
  const expert = EXPERT.exec(name)
  if (expert !== null && names.tensorOf(name) === undefined) {
    // Stacked afterwards, under the name that all experts share.
    return [
      { ...own, tensor: `${expert[2]}:${tensorOf(stackedModule(expert), name, base)}`, pairs: [{ weightA, weightB }] },
    ]
  }
  const tensor = tensorOf(name, name, base)
  if (tensor === 'token_embd.weight' && part.kind === 'linear') throw noTensor(name, names)
  if (part.kind === 'embedding' && (tensor !== 'token_embd.weight' || base.isTied)) {
    throw new UnsupportedError({
      where: name,
      what: base.isTied
        ? 'llama.cpp reads the output embedding from this tensor too, and cannot adapt the input embedding alone'
        : 'llama.cpp adapts no embedding but that of tokens',
      hint: 'Merge the adapter into its base, and convert the merged model',
    })
  }
  return [{ ...own, tensor, pairs: [{ weightA, weightB }], heads: headsOf(tensor, base) }]
}

function tensorOf(module: string, where: string, base: GgufBase): string {
  const { names } = base
  const tensor = names.tensorOf(module)
  if (tensor === undefined) throw noTensor(where, names)
  if (tensor === 'output' && base.isTied) {
    throw new UnsupportedError({
      where,
      what: 'the base’s output embedding is its input embedding (tie_word_embeddings), so a GGUF file has no tensor for it',
      hint: 'Merge the adapter into its base with untied embeddings, and convert the merged model',
    })
  }
  return `${tensor}.weight`
}

/** Mixtral's experts have names of their own in llama.cpp's tables. */
function stackedModule([, module, , part]: RegExpExecArray): string {
  const layer = /\.(\d+)\.block_sparse_moe$/.exec(module)?.[1]
  return layer !== undefined && /^w[123]$/.test(part)
    ? `layers.${layer}.feed_forward.experts.${part}`
    : `${module}.experts.${part}`
}

/** The modules of a stacked parameter, with their factors: `gate_up_proj` is two tensors, unless llama.cpp has one for both. */
function parameterPairs(name: string, pairs: readonly FactorPair[], base: GgufBase): [string, readonly FactorPair[]][] {
  const isDown = name.endsWith('down_proj')
  const { hidden } = base
  const [d, k] = [pairs[0].weightB.shape[0], pairs[0].weightA.shape[1]]
  // Some models store (E, k, d): there A and B change places.
  const isTurned = hidden !== undefined && d !== k && (isDown ? k === hidden : d === hidden)
  const own = isTurned
    ? pairs.map(({ weightA, weightB }) => ({ weightA: transpose(weightB), weightB: transpose(weightA) }))
    : pairs
  if (!name.endsWith('.gate_up_proj')) return [[name, own]]
  const module = name.slice(0, -'gate_up_proj'.length)
  const rows = own[0].weightB.shape[0] / 2
  const half = (first: number): FactorPair[] =>
    own.map(({ weightA, weightB: { data, shape } }) => {
      const part = data.subarray(first * shape[1], (first + rows) * shape[1])
      return { weightA, weightB: { data: part, shape: [rows, shape[1]] } }
    })
  return [
    [`${module}gate_proj`, half(0)],
    [`${module}up_proj`, half(rows)],
  ]
}

function headsOf(tensor: string, { names, heads, keyHeads }: GgufBase): number | undefined {
  const found = names.way === 'permuted' ? /^blk\.(\d+)\.attn_([qk])\.weight$/.exec(tensor) : null
  if (found === null) return undefined
  return found[2] === 'q' ? heads(Number(found[1])) : keyHeads(Number(found[1]))
}

/** Experts one by one become one tensor: all of a layer's must be there, with one rank. */
function stackExperts(all: readonly GgufPair[]): GgufPair[] {
  const single = all.filter(({ tensor }) => !/^\d+:/.test(tensor))
  const byTensor = new Map<string, Map<number, GgufPair>>()
  for (const pair of all) {
    const [, number, tensor] = /^(\d+):(.*)$/.exec(pair.tensor) ?? []
    if (number === undefined) continue
    const experts = byTensor.get(tensor) ?? new Map<number, GgufPair>()
    byTensor.set(tensor, experts.set(Number(number), pair))
  }
  const stacked = [...byTensor].map(([tensor, experts]): GgufPair => {
    const ordered = Array.from({ length: experts.size }, (_, i) => experts.get(i))
    const first = ordered[0] ?? [...experts.values()][0]
    const shapes = ordered.map(
      (pair) => pair && `${pair.pairs[0].weightA.shape} ${pair.pairs[0].weightB.shape} ${pair.scaling}`,
    )
    if (shapes.some((shape) => shape !== shapes[0] || shape === undefined)) {
      throw new UnsupportedError({
        where: first.where,
        what: 'GGUF keeps the experts of a layer in one tensor: all of them must be adapted, with one rank and one alpha',
        hint: 'Merge the adapter into its base, and convert the merged model',
      })
    }
    return { ...first, tensor, pairs: ordered.map((pair) => pair!.pairs[0]), isStacked: true }
  })
  return [...single, ...stacked]
}

function checkFits({ tensor, pairs, isStacked, where }: GgufPair, { shapes, names, experts }: GgufBase): void {
  if (isStacked && experts !== undefined && pairs.length !== experts) {
    const got = `factors of ${pairs.length}`
    throw new MismatchError({ where, what: 'not the experts of the base', expected: `${experts} experts`, got })
  }
  if (shapes === undefined) return
  const shape = shapes.get(tensor)
  if (shape === undefined) throw noTensor(where, names)
  const [d, k] = [pairs[0].weightB.shape[0], pairs[0].weightA.shape[1]]
  const matrix = tensor === 'token_embd.weight' ? [k, d] : [d, k]
  const own = isStacked ? [pairs.length, ...matrix] : matrix
  if (formatShape(own) === formatShape(shape)) return
  throw new MismatchError({
    where,
    what: `does not fit ${tensor} of the base`,
    expected: formatShape(shape),
    got: formatShape(own),
  })
}

/** The alpha that gives each layer its scaling, where there is one. */
function commonAlpha(pairs: readonly GgufPair[]): number | undefined {
  const alphas = pairs.map(({ scaling, pairs: [{ weightA }] }) => scaling * weightA.shape[0])
  const [first] = alphas
  // 0 means a scaling of 1 there.
  return first !== 0 && alphas.every((alpha) => Math.abs(alpha - first) <= 1e-12 * Math.abs(first)) ? first : undefined
}

function writtenTensors(
  { tensor, pairs, isStacked, scaling, heads, where }: GgufPair,
  dtype: GgufFloat,
  alpha: number | undefined,
  halves: Set<string>,
): WrittenTensor[] {
  const factor = alpha === undefined ? scaling : 1
  const isEmbedding = tensor === 'token_embd.weight'
  const written = (
    suffix: string,
    [rows, columns]: readonly [number, number],
    of: (pair: FactorPair) => Matrix,
  ): WrittenTensor => {
    const name = `${tensor}.${suffix}`
    const isHalf = dtype === 'Q8_0' && columns % 32 !== 0
    if (isHalf) halves.add(name)
    return {
      name,
      shape: isStacked ? [pairs.length, rows, columns] : [rows, columns],
      dtype: isHalf ? 'F16' : dtype,
      values() {
        const result = new Float32Array(pairs.length * rows * columns)
        for (const [i, pair] of pairs.entries()) result.set(of(pair).data, i * rows * columns)
        return result
      },
    }
  }
  const [r, k] = pairs[0].weightA.shape
  const d = pairs[0].weightB.shape[0]
  const a = isEmbedding
    ? written('lora_a', [k, r], ({ weightA }) => transpose(weightA))
    : written('lora_a', [r, k], ({ weightA }) => weightA)
  const b = written('lora_b', [d, r], ({ weightB }) => {
    const ordered = heads === undefined ? weightB : toGgufOrder(weightB, heads, where)
    return factor === 1 ? ordered : { ...ordered, data: ordered.data.map((value) => factor * value) as Float32Array }
  })
  return [a, b]
}
