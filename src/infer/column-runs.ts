// Runs that fused attention cannot do at once: several texts, each with a cache and more than one new token. They run
// token by token, which gives the same.

import type { Feeds, RuntimeTensor } from '../runtime/runtime.js'

export interface TokenColumns {
  /** Inputs (batch, sequence), input_ids among them or what takes its place: vectors (batch, sequence, features). */
  readonly tokens: readonly string[]
  /** Inputs (batch, past + sequence). */
  readonly masks: readonly string[]
  readonly cache: readonly { readonly past: string; readonly present: string }[]
}

type Run = (feeds: Feeds, outputNames: readonly string[]) => Promise<Record<string, RuntimeTensor>>

export function needsColumns({ tokens, cache }: TokenColumns, feeds: Feeds): boolean {
  const [batch, sequence] = feeds[tokens[0]]?.dims ?? []
  const past = feeds[cache[0]?.past]?.dims[2] ?? 0
  return batch > 1 && sequence > 1 && past > 0
}

export async function runColumns(
  run: Run,
  { tokens, masks, cache }: TokenColumns,
  feeds: Feeds,
  outputNames: readonly string[],
): Promise<Record<string, RuntimeTensor>> {
  const [, sequence] = feeds[tokens[0]].dims
  const presents = cache.map(({ present }) => present)
  const names = [...new Set([...outputNames, ...presents])]
  const runs: Record<string, RuntimeTensor>[] = []
  for (let column = 0; column < sequence; column++) {
    const own: Feeds = { ...feeds }
    for (const name of tokens) own[name] = columnsOf(feeds[name], column, column + 1)
    for (const name of masks) own[name] = columnsOf(feeds[name], 0, feeds[name].dims[1] - sequence + column + 1)
    const before = runs.at(-1)
    if (before !== undefined) for (const { past, present } of cache) own[past] = before[present]
    runs.push(await run(own, names))
  }
  const joined = outputNames.map((name) => {
    const parts = runs.map((outputs) => outputs[name])
    return [name, presents.includes(name) ? parts[parts.length - 1] : join(parts)] as const
  })
  return Object.fromEntries(joined)
}

function columnsOf(tensor: RuntimeTensor, from: number, to: number): RuntimeTensor {
  const axis = Math.min(1, tensor.dims.length - 1)
  const [before, [width, ...after]] = [tensor.dims.slice(0, axis), tensor.dims.slice(axis)]
  const size = after.reduce((product, dim) => product * dim, 1)
  const rows = tensor.data.length / (width * size)
  const count = (to - from) * size
  const data = new (tensor.data.constructor as Float32ArrayConstructor)(rows * count)
  for (let row = 0; row < rows; row++) {
    const start = (row * width + from) * size
    data.set((tensor.data as Float32Array).subarray(start, start + count), row * count)
  }
  return like(tensor, data, [...before, to - from, ...after])
}

function join(parts: readonly RuntimeTensor[]): RuntimeTensor {
  const [{ data: first, dims }] = parts
  const [batch, , ...rest] = dims
  const size = first.length / batch
  const data = new (first.constructor as Float32ArrayConstructor)(parts.length * first.length)
  parts.forEach((part, column) => {
    for (let row = 0; row < batch; row++) {
      const values = (part.data as Float32Array).subarray(row * size, (row + 1) * size)
      data.set(values, (row * parts.length + column) * size)
    }
  })
  return like(parts[0], data, [batch, parts.length, ...rest])
}

/** Makes a tensor of the class of another: ONNX Runtime's own where tensors are kept. */
function like(tensor: RuntimeTensor, data: RuntimeTensor['data'], dims: readonly number[]): RuntimeTensor {
  if (tensor.constructor === Object) return { type: tensor.type, data, dims }
  const Tensor = tensor.constructor as new (type: string, data: unknown, dims: readonly number[]) => RuntimeTensor
  return new Tensor(tensor.type, data, dims)
}
