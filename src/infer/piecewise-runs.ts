// Splits a run into pieces, each of which continues the cache of the piece before it. Fused attention cannot read
// several new tokens of several texts that have a cache, so they run token by token, with the same result. The tokens
// before the start of an activated LoRA are a piece too.

import type { TokenColumns } from '../graph/inputs/tokens.js'
import { type Feeds, freeOnGpu, type RuntimeTensor } from '../runtime/runtime.js'
import { joinRows } from './generate/row-cache.js'

/** Runs a piece of all texts. `first` is the index of its first token. */
type Run = (feeds: Feeds, outputNames: readonly string[], first: number) => Promise<Record<string, RuntimeTensor>>

export function needsTokenByToken({ tokens, cache }: TokenColumns, feeds: Feeds): boolean {
  const [batch, sequence] = feeds[tokens[0]]?.dims ?? []
  const past = feeds[cache[0]?.past]?.dims[2] ?? 0
  return batch > 1 && sequence > 1 && past > 0
}

/**
 * Runs the pieces of the texts one after the other, and joins the outputs.
 *
 * @param starts the index of the first token of each piece, in order. Default: each token is a piece
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
    const pieceFeeds: Feeds = { ...feeds }
    for (const name of tokens) pieceFeeds[name] = columnsOf(feeds[name], first, end)
    for (const name of masks) pieceFeeds[name] = columnsOf(feeds[name], 0, feeds[name].dims[1] - sequence + end)
    const before = runs.at(-1)
    if (before !== undefined) for (const { past, present } of cache) pieceFeeds[past] = before[present]
    runs.push(await run(pieceFeeds, names, first))
    if (before !== undefined) freeOnGpu(...presents.map((present) => before[present]))
  }
  const joined = outputNames.map((name) => {
    const parts = runs.map((outputs) => outputs[name])
    // Some graphs return the logits of the last token only.
    const isWhole = parts.every(({ dims }, i) => dims[1] === (firsts[i + 1] ?? sequence) - firsts[i])
    return [name, presents.includes(name) || !isWhole ? parts[parts.length - 1] : join(parts)] as const
  })
  return Object.fromEntries(joined)
}

function columnsOf(tensor: RuntimeTensor, from: number, to: number): RuntimeTensor {
  const { type, data, dims } = tensor
  const batchDims = dims.length === 1 ? [1, ...dims] : dims
  const rows = { rows: [...Array(batchDims[0]).keys()], from, count: to - from, to: 0 }
  const cut = joinRows([{ ...rows, tensor: { type, data, dims: batchDims } }], 1, to - from)
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
    const width = part.dims[1] * size
    for (let row = 0; row < batch; row++) {
      data.set((part.data as Float32Array).subarray(row * width, (row + 1) * width), (row * columns + column) * size)
    }
    column += part.dims[1]
  }
  return like(parts[0], { type: parts[0].type, data, dims: [batch, columns, ...rest] })
}

/** Makes `made` a tensor of the same class as `tensor`: ONNX Runtime's class if tensors stay in its memory. */
export function like(tensor: RuntimeTensor, made: RuntimeTensor): RuntimeTensor {
  if (tensor.constructor === Object) return made
  const Tensor = tensor.constructor as new (type: string, data: unknown, dims: readonly number[]) => RuntimeTensor
  return new Tensor(made.type, made.data, made.dims)
}
