// Writes adapters as GGUF files. Names and the order of the rows of q and k depend on the model, so the base is needed.

import { type ByteSink, type Place, writeThrough } from '../../../core/base/bytes.js'
import { type FloatDtype, isFiniteStored } from '../../../core/base/dtype.js'
import { ConfigError, MismatchError, NumericError, UnsupportedError } from '../../../core/base/errors.js'
import { groupBy } from '../../../core/base/group.js'
import { Steps, type ToolRun } from '../../../core/base/progress.js'
import { type Matrix, transpose } from '../../../core/base/tensor.js'
import { rowsOf } from '../../../core/linalg/product.js'
import { encodeStored } from '../../../files/gguf/blocks.js'
import { type GgufFloat, type WrittenTensor, type WrittenValue, writeGguf } from '../../../files/gguf/write.js'
import { scalingOf } from '../../../lora/config.js'
import { expertColumns } from '../../../lora/kinds/experts.js'
import type { AdapterTensor } from '../../../lora/peft/keys.js'
import { type OpenAdapter, readFactor } from '../../../lora/peft/open.js'
import type { OpenPart } from '../../../lora/peft/tensors.js'
import { type ExchangeFormat, requireHeld, type Written } from '../exchange-format.js'
import { type GgufBase, readBase } from './base.js'
import { EXPERT, stackedModule } from './experts.js'
import { noTensor } from './names.js'
import { toGgufOrder } from './order.js'

export const GGUF: ExchangeFormat = {
  async write(adapter, { directory, file }, { base, dtype, ...run }) {
    const opened = await openBase(base)
    let report: Written = { layers: 0 }
    const write = async (sink: ByteSink) => {
      report = await writeGgufAdapter(adapter, opened, sink, dtype, run)
    }
    await writeThrough(directory, file!, write, true)
    return report
  },
}

async function openBase(base: Place | undefined): Promise<GgufBase> {
  if (base !== undefined) return readBase(base.directory)
  throw new ConfigError({
    where: 'base',
    what: 'missing: names and the order of q and k in GGUF depend on the model',
    expected: 'a folder with the model’s config.json',
  })
}

type GgufDtype = GgufFloat | 'keep'

interface Factor {
  readonly shape: readonly [rows: number, columns: number]
  /** Reads one matrix, or several for stacked experts. */
  read(): Promise<readonly Matrix[]>
}

interface GgufPair {
  /** The name of the tensor in the GGUF file, with `.weight`. */
  readonly tensor: string
  /** The number of the expert if this is one of those that `tensor` stacks. */
  readonly expert?: number
  readonly a: Factor
  readonly b: Factor
  readonly count: number
  /** True if the tensor has a dimension for experts, even if there is only one. */
  readonly isStacked: boolean
  readonly scaling: number
  readonly dtype: GgufFloat
  /** The number of heads if the rows of B must be written in llama.cpp's order. */
  readonly heads: number | undefined
  readonly where: string
}

type FactorPart = Extract<OpenPart, { kind: 'linear' | 'embedding' | 'parameter' }>

/**
 * Writes a file for llama.cpp (its convert_lora_to_gguf.py and src/llama-adapter.cpp), which multiplies by alpha/r, or
 * by 1 if alpha is 0. llama.cpp's own converter writes only lora_alpha, so the scalings of rsLoRA, rank_pattern and
 * alpha_pattern are lost. We write the alpha that gives all layers their scaling; if there is none, the scalings are
 * multiplied into B. The caller commits the sink. Two tensors are in memory at a time.
 */
async function writeGgufAdapter(
  adapter: OpenAdapter,
  base: GgufBase,
  sink: ByteSink,
  dtype: GgufDtype,
  run: ToolRun = {},
): Promise<Written> {
  requireHeld(adapter, ['linear', 'embedding', 'parameter'], 'a GGUF adapter')
  const parts = adapter.parts() as readonly FactorPart[]
  const pairs = stackExperts(parts.flatMap((part) => pairsOf(part, adapter.dtypeOf(part), base)))
  for (const pair of pairs) checkExperts(pair, base)
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
  const steps = new Steps(tensors.length, run)
  await writeGguf(sink, metadata, tensors, (name) => steps.next(name))
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

function pairsOf(part: FactorPart, dtype: FloatDtype, base: GgufBase): GgufPair[] {
  const { names } = base
  const { name, config } = part
  const shared = { scaling: scalingOf(config), dtype, where: name, heads: undefined, isStacked: false, count: 1 }
  if (part.kind === 'parameter') {
    return parameterPairs(part, base).map(([module, a, b]) => {
      return { ...shared, tensor: tensorOf(module, name, base), a, b, count: part.experts, isStacked: true }
    })
  }
  const [a, b] = (['weightA', 'weightB'] as const).map((role): Factor => {
    const tensor = part.tensors[role]
    return { shape: [tensor.shape[0], tensor.shape[1]], read: async () => [await readMatrix(tensor)] }
  })
  const expert = EXPERT.exec(name)
  if (expert !== null && names.tensorOf(name) === undefined) {
    // Experts are stacked later, under a name that they all share.
    return [{ ...shared, tensor: tensorOf(stackedModule(expert), name, base), expert: Number(expert[2]), a, b }]
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
  return [{ ...shared, tensor, a, b, heads: headsOf(tensor, base) }]
}

async function readMatrix(tensor: AdapterTensor): Promise<Matrix> {
  const { data, shape } = await readFactor(tensor)
  return { data, shape: [shape[0], shape[1]] }
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

/** Splits `gate_up_proj` into two tensors, unless llama.cpp has one tensor for both. */
function parameterPairs(
  { name, tensors: { weightA, weightB }, experts }: Extract<FactorPart, { kind: 'parameter' }>,
  { hidden }: GgufBase,
): [module: string, a: Factor, b: Factor][] {
  const isDown = name.endsWith('down_proj')
  const [rank, k, d] = [weightA.shape[0] / experts, weightA.shape[1], weightB.shape[0]]
  const each = Array.from({ length: experts }, (_, e) => e)
  const a: Factor = {
    shape: [rank, k],
    async read() {
      const whole = await readMatrix(weightA)
      return each.map((e) => rowsOf(whole, e, experts))
    },
  }
  const b: Factor = {
    shape: [d, rank],
    async read() {
      const whole = await readMatrix(weightB)
      return each.map((e) => expertColumns(whole, e, experts))
    },
  }
  // Some models store experts as (E, k, d). Then A and B are swapped and transposed.
  const isTurned = hidden !== undefined && d !== k && (isDown ? k === hidden : d === hidden)
  const [right, left] = isTurned ? [turned(b), turned(a)] : [a, b]
  if (!name.endsWith('.gate_up_proj')) return [[name, right, left]]
  const module = name.slice(0, -'gate_up_proj'.length)
  const rows = left.shape[0] / 2
  const half = (first: number): Factor => ({
    shape: [rows, rank],
    read: async () => {
      return (await left.read()).map(({ data }) => {
        return { data: data.subarray(first * rank, (first + rows) * rank), shape: [rows, rank] }
      })
    },
  })
  return [
    [`${module}gate_proj`, right, half(0)],
    [`${module}up_proj`, right, half(rows)],
  ]
}

function turned({ shape: [rows, columns], read }: Factor): Factor {
  return { shape: [columns, rows], read: async () => (await read()).map(transpose) }
}

function headsOf(tensor: string, { names, heads, keyHeads }: GgufBase): number | undefined {
  const found = names.way === 'permuted' ? /^blk\.\d+\.attn_([qk])\.weight$/.exec(tensor) : null
  if (found === null) return undefined
  return found[1] === 'q' ? heads() : keyHeads()
}

/** Stacks separate experts into one tensor. All experts of a layer must be there, with the same rank and alpha. */
function stackExperts(all: readonly GgufPair[]): GgufPair[] {
  const single = all.filter(({ expert }) => expert === undefined)
  const separate = all.filter(({ expert }) => expert !== undefined)
  const stacked = [...groupBy(separate, ({ tensor }) => tensor).values()].map((experts): GgufPair => {
    const ordered = experts.map((_, i) => experts.find(({ expert }) => expert === i))
    const first = ordered[0] ?? experts[0]
    const shapes = ordered.map((pair) => pair && `${pair.a.shape} ${pair.b.shape} ${pair.scaling}`)
    if (shapes.some((shape) => shape !== shapes[0] || shape === undefined)) {
      throw new UnsupportedError({
        where: first.where,
        what: 'GGUF keeps the experts of a layer in one tensor: all of them must be adapted, with one rank and one alpha',
        hint: 'Merge the adapter into its base, and convert the merged model',
      })
    }
    const all = (role: 'a' | 'b'): Factor => ({
      shape: first[role].shape,
      async read() {
        const matrices: Matrix[] = []
        for (const pair of ordered) matrices.push(...(await pair![role].read()))
        return matrices
      },
    })
    return { ...first, a: all('a'), b: all('b'), count: ordered.length, isStacked: true }
  })
  return [...single, ...stacked]
}

function checkExperts({ count, isStacked, where }: GgufPair, { experts }: GgufBase): void {
  if (!isStacked || experts === undefined || count === experts) return
  const got = `factors of ${count}`
  throw new MismatchError({ where, what: 'not the experts of the base', expected: `${experts} experts`, got })
}

function commonAlpha(pairs: readonly GgufPair[]): number | undefined {
  const alphas = pairs.map(({ scaling, a }) => scaling * a.shape[0])
  const [first] = alphas
  // llama.cpp reads an alpha of 0 as a scaling of 1, so 0 cannot be written.
  return first !== 0 && alphas.every((alpha) => Math.abs(alpha - first) <= 1e-12 * Math.abs(first)) ? first : undefined
}

function writtenTensors(
  { tensor, a, b, count, isStacked, scaling, heads, where }: GgufPair,
  dtype: GgufFloat,
  alpha: number | undefined,
  halves: Set<string>,
): WrittenTensor[] {
  const written = (suffix: string, { shape: [rows, columns], read }: Factor, scale: number, turns?: number) => {
    const name = `${tensor}.${suffix}`
    const isHalf = dtype === 'q8_0' && columns % 32 !== 0
    if (isHalf) halves.add(name)
    const type = isHalf ? 'fp16' : dtype
    const shape = isStacked ? [count, rows, columns] : [rows, columns]
    const bytes = async () => {
      const values = new Float32Array(count * rows * columns)
      for (const [i, { data }] of (await read()).entries()) {
        values.set(turns === undefined ? data : toGgufOrder(data, rows, turns, where), i * rows * columns)
      }
      if (scale !== 1) for (let i = 0; i < values.length; i++) values[i] *= scale
      const encoded = encodeStored(values, type)
      if (type === 'q8_0' || isFiniteStored(encoded, type)) return encoded
      throw new NumericError({ where, what: `a value that is not finite in ${type}`, hint: 'Convert to bf16 or f32' })
    }
    return { name, shape, dtype: type, bytes }
  }
  return [
    written('lora_a', tensor === 'token_embd.weight' ? turned(a) : a, 1),
    written('lora_b', b, alpha === undefined ? scaling : 1, heads),
  ]
}
