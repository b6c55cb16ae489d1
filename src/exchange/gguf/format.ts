// GGUF files of adapters. Names and the order of q and k depend on the model, so both ways need the base.

import { type ByteSource, type Place, withSource, writeThrough } from '../../base/bytes.js'
import { ConfigError, FormatError, MismatchError, ShapeError, UnsupportedError } from '../../base/errors.js'
import { formatShape, isAllFinite, type Matrix, transpose } from '../../base/tensor.js'
import { type GgufFile, type GgufTensor, parseGguf, readGgufTensor } from '../../formats/gguf/gguf.js'
import { floatOf } from '../../formats/gguf/types.js'
import type { LoraAdapter } from '../../lora/adapter.js'
import { notFinite } from '../../lora/part.js'
import { openAdapter } from '../../peft/open.js'
import { type ExchangeFormat, startsWith, type Written } from '../format.js'
import { adapterOf, type ReadLayer } from '../read-layers.js'
import { fromGgufOrder, type GgufBase, readBase } from './base.js'
import { writeGgufAdapter } from './write.js'

export const GGUF: ExchangeFormat = {
  detect: (place) => startsWith(place, (start) => String.fromCharCode(...start.subarray(0, 4)) === 'GGUF'),
  open: ({ directory, file }, base) =>
    withSource(directory, file!, async (source) => openAdapter(await readGgufAdapter(source, await openBase(base)))),
  async write(adapter, { directory, file }, { base, dtype, ...run }) {
    const opened = await openBase(base)
    let report: Written = { layers: 0 }
    await writeThrough(directory, file!, async (sink) => {
      report = await writeGgufAdapter(adapter, opened, sink, dtype, run)
    })
    return report
  },
}

async function openBase(base: Place | undefined): Promise<GgufBase> {
  if (base !== undefined) return readBase(base.directory, base.file)
  throw new ConfigError({
    where: 'base',
    what: 'missing: names and the order of q and k in GGUF depend on the model',
    expected: 'a folder with the model’s config.json, or its GGUF file',
  })
}

async function readGgufAdapter(source: ByteSource, base: GgufBase): Promise<LoraAdapter> {
  const file = await parseGguf(source)
  const alpha = checkAdapter(file, base)
  const tokens = invocationOf(file)
  const pairs = findPairs(file)
  const layers: ReadLayer[] = []
  for (const [tensor, { a, b }] of pairs) layers.push(...(await readPair(file, tensor, a, b, alpha, base)))
  return adapterOf(layers, tokens === undefined ? {} : { aloraInvocationTokens: tokens, taskType: 'CAUSAL_LM' })
}

/** The tokens that turn an activated LoRA on; undefined for another. */
function invocationOf({ source, metadata }: GgufFile): number[] | undefined {
  const key = 'adapter.alora.invocation_tokens'
  const value = metadata.get(key)
  if (value === undefined) return undefined
  const tokens = Array.isArray(value) ? value.map(Number) : []
  if (tokens.length > 0 && tokens.every((token) => Number.isSafeInteger(token) && token >= 0)) return tokens
  throw new FormatError({ where: `${source.name}: ${key}`, what: 'no list of token ids' })
}

/** Returns alpha, where 0 stands for a scaling of 1. */
function checkAdapter({ source, metadata }: GgufFile, { names }: GgufBase): number {
  const where = source.name
  const expect = (key: string, expected: string) => {
    const got = metadata.get(key)
    if (got === expected) return
    throw new FormatError({
      where: `${where}: ${key}`,
      what: 'not a LoRA adapter',
      expected,
      got: String(got ?? 'nothing'),
    })
  }
  expect('general.type', 'adapter')
  expect('adapter.type', 'lora')
  const architecture = metadata.get('general.architecture')
  if (architecture !== names.architecture) {
    throw new MismatchError({
      where: `${where}: general.architecture`,
      what: 'the adapter belongs to another base',
      expected: names.architecture,
      got: String(architecture),
    })
  }
  const alpha = metadata.get('adapter.lora.alpha') ?? 0
  if (typeof alpha === 'number' && Number.isFinite(alpha)) return alpha
  throw new FormatError({ where: `${where}: adapter.lora.alpha`, what: 'not a finite number', got: String(alpha) })
}

function findPairs({ source, tensors }: GgufFile): Map<string, { a: GgufTensor; b: GgufTensor }> {
  const pairs = new Map<string, { a?: GgufTensor; b?: GgufTensor }>()
  for (const tensor of tensors.values()) {
    const [, name, half] = /^(.+)\.lora_([ab])$/.exec(tensor.name) ?? []
    if (name === undefined) {
      const what = 'neither lora_a nor lora_b: an adapter with other tensors is not read'
      throw new UnsupportedError({ where: `${source.name}: ${tensor.name}`, what })
    }
    pairs.set(name, { ...pairs.get(name), [half]: tensor })
  }
  if (pairs.size === 0) throw new FormatError({ where: source.name, what: 'an adapter without a single tensor' })
  for (const [name, { a, b }] of pairs) {
    if (a !== undefined && b !== undefined) continue
    throw new FormatError({
      where: `${source.name}: ${name}`,
      what: `half a pair: no ${name}.lora_${a === undefined ? 'a' : 'b'}`,
    })
  }
  return pairs as Map<string, { a: GgufTensor; b: GgufTensor }>
}

async function readPair(
  file: GgufFile,
  tensor: string,
  a: GgufTensor,
  b: GgufTensor,
  alpha: number,
  { names, heads, keyHeads }: GgufBase,
): Promise<ReadLayer[]> {
  const where = `${file.source.name}: ${tensor}`
  const module = names.moduleOf(tensor.replace(/\.weight$/, ''))
  if (module === undefined) {
    throw new MismatchError({ where, what: `models of the architecture ${names.architecture} have no such tensor` })
  }
  const isEmbedding = tensor === 'token_embd.weight'
  const [valuesA, valuesB] = [await readGgufTensor(file, a), await readGgufTensor(file, b)]
  for (const [values, name] of [
    [valuesA, a.name],
    [valuesB, b.name],
  ] as const) {
    if (!isAllFinite(values)) throw notFinite(`${file.source.name}: ${name}`)
  }
  const rank = b.shape.at(-1)!
  const rankA = a.shape.at(isEmbedding ? -1 : -2)
  const isStacked = a.shape.length === 3
  if (
    a.shape.length !== b.shape.length ||
    a.shape.length < 2 ||
    rank !== rankA ||
    (isStacked && (isEmbedding || a.shape[0] !== b.shape[0]))
  ) {
    throw new ShapeError({
      where,
      what: 'factors that do not fit each other',
      got: `${formatShape(a.shape)}, ${formatShape(b.shape)}`,
    })
  }
  const scaling = alpha === 0 ? 1 : alpha / rank
  const stored = floatOf(b.type)
  const dtype = stored === 'fp16' || stored === 'bf16' ? stored : 'fp32'
  const experts = isStacked ? a.shape[0] : 1
  const matrices = (values: Float32Array, shape: readonly number[]): Matrix[] => {
    const [rows, columns] = shape.slice(-2)
    return Array.from({ length: experts }, (_, e) => ({
      data: values.subarray(e * rows * columns, (e + 1) * rows * columns),
      shape: [rows, columns] as const,
    }))
  }
  const [factorsA, factorsB] = [matrices(valuesA, a.shape), matrices(valuesB, b.shape)]
  const found = names.way === 'permuted' ? /^blk\.(\d+)\.attn_([qk])\.weight$/.exec(tensor) : null
  return factorsA.map((weightA, e): ReadLayer => {
    const weightB = factorsB[e]
    const count = found && (found[2] === 'q' ? heads(Number(found[1])) : keyHeads(Number(found[1])))
    return {
      name: isStacked ? module.replace(/\.experts\./, `.experts.${e}.`) : module,
      kind: isEmbedding ? 'embedding' : 'linear',
      weightA: isEmbedding ? transpose(weightA) : weightA,
      weightB:
        count === null ? weightB : { ...weightB, data: fromGgufOrder(weightB.data, weightB.shape[0], count, where) },
      scaling,
      dtype,
    }
  })
}
