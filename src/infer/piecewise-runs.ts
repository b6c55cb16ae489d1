// Runs in pieces, each behind the cache of the ones before. Several texts, each with a cache and more than one new
// token, are too much for fused attention at once: they run token by token, which gives the same. An activated LoRA
// counts from some token on: what comes before is a piece of its own.

import type { TokenColumns } from '../graph/inputs/tokens.js'
import { type Feeds, freeOnGpu, type RuntimeTensor } from '../runtime/runtime.js'
import { joinRows } from './generate/row-cache.js'

/** Runs tokens of all texts, from the one with this number on. */
type Run = (feeds: Feeds, outputNames: readonly string[], first: number) => Promise<Record<string, RuntimeTensor>>

export function needsTokenByToken({ tokens, cache }: TokenColumns, feeds: Feeds): boolean {
  const [batch, sequence] = feeds[tokens[0]]?.dims ?? []
  const past = feeds[cache[0]?.past]?.dims[2] ?? 0
  return batch > 1 && sequence > 1 && past > 0
}

/**
 * Runs pieces of the texts one after the other, and joins the outputs.
 *
 * @param starts the first tokens of the pieces, in order. Default: all
 */
export async function runPiecewise(
  run: Run,
  { tokens, masks, cache }: TokenColumns,
  feeds: Feeds,
  outputNames: readonly string[],
  starts?: readonly number[],
): Promise<Record<string, RuntimeTensor>> {
  const [, sequence] = feeds[tokens[0]].dims
  const firsts = starts ?? [...Array(sequence).keys()]
  const presents = cache.map(({ present }) => present)
  const names = [...new Set([...outputNames, ...presents])]
  const runs: Record<string, RuntimeTensor>[] = []
  for (const [i, first] of firsts.entries()) {
    const end = firsts[i + 1] ?? sequence
    const own: Feeds = { ...feeds }
    for (const name of tokens) own[name] = columnsOf(feeds[name], first, end)
    for (const name of masks) own[name] = columnsOf(feeds[name], 0, feeds[name].dims[1] - sequence + end)
    const before = runs.at(-1)
    if (before !== undefined) for (const { past, present } of cache) own[past] = before[present]
    runs.push(await run(own, names, first))
    if (before !== undefined) freeOnGpu(...presents.map((present) => before[present]))
  }
  const joined = outputNames.map((name) => {
    const parts = runs.map((outputs) => outputs[name])
    // Some graphs give the logits of the last token alone.
    const isWhole = parts.every(({ dims }, i) => dims[1] === (firsts[i + 1] ?? sequence) - firsts[i])
    return [name, presents.includes(name) || !isWhole ? parts[parts.length - 1] : join(parts)] as const
  })
  return Object.fromEntries(joined)
}

function columnsOf(tensor: RuntimeTensor, from: number, to: number): RuntimeTensor {
  const { type, data, dims } = tensor
  const own = dims.length === 1 ? [1, ...dims] : dims
  const rows = { rows: [...Array(own[0]).keys()], from, count: to - from, to: 0 }
  const cut = joinRows([{ ...rows, tensor: { type, data, dims: own } }], 1, to - from)
  return like(tensor, { ...cut, dims: cut.dims.slice(-dims.length) })
}

function join(parts: readonly RuntimeTensor[]): RuntimeTensor {
  const [{ data: first, dims }] = parts
  const [batch, , ...rest] = dims
  const columns = parts.reduce((sum, part) => sum + part.dims[1], 0)
  const size = first.length / batch / dims[1]
  const data = new (first.constructor as Float32ArrayConstructor)(batch * columns * size)
  let column = 0
  for (const part of parts) {
    const own = part.dims[1] * size
    for (let row = 0; row < batch; row++) {
      data.set((part.data as Float32Array).subarray(row * own, (row + 1) * own), (row * columns + column) * size)
    }
    column += part.dims[1]
  }
  return like(parts[0], { type: parts[0].type, data, dims: [batch, columns, ...rest] })
}

/** Makes a tensor of the class of another: ONNX Runtime's own where tensors are kept. */
export function like(tensor: RuntimeTensor, made: RuntimeTensor): RuntimeTensor {
  if (tensor.constructor === Object) return made
  const Tensor = tensor.constructor as new (type: string, data: unknown, dims: readonly number[]) => RuntimeTensor
  return new Tensor(made.type, made.data, made.dims)
}
