// Runs all tools on files in memory, in Node or in a page, and returns their reports and files.

import {
  combine,
  convertAdapter,
  diff,
  type LoraAdapter,
  loadAdapter,
  MemoryDirectory,
  resize,
  saveAdapter,
} from '../../../src/api/index.js'

/** Folder → file → bytes. */
export type JobFiles = Record<'first' | 'second' | 'dora' | 'llama', Record<string, Uint8Array>>

/** Numbers by name, and the files that conversions wrote. */
export interface JobResult {
  numbers: Record<string, number>
  /** Bytes of each written file. */
  written: Record<string, number[]>
  progress: string[]
  refused: string
}

/**
 * One number for an adapter: the norms of the changes of its linear layers, and the squares of its embeddings' A,
 * summed. Different adapters give different numbers.
 */
function sumOf(adapter: LoraAdapter): number {
  let sum = 0
  for (const part of adapter.parts('linear')) sum += part.normDelta()
  for (const { weightA } of adapter.parts('embedding')) for (const value of weightA.data) sum += value ** 2
  return sum
}

export async function runJob(files: JobFiles): Promise<JobResult> {
  const [first, second, dora, llama] = (['first', 'second', 'dora', 'llama'] as const).map(
    (name) => new MemoryDirectory(files[name], name),
  )
  const numbers: Record<string, number> = {}
  const progress: string[] = []
  const on = {
    progress: ({ done, total }: { done: number; total: number }) => void progress.push(`${done}/${total}`),
  }
  for (const combinationType of ['exact', 'linear'] as const) {
    const adapters = [{ adapter: first, weight: 0.5 }, second]
    const { adapter, error } = await combine({ adapters, combinationType, on })
    numbers[combinationType] = sumOf(adapter)
    numbers[`${combinationType} error`] = error
  }
  const smaller = await resize(first, { rank: 1, on })
  numbers['resize error'] = smaller.error
  const compared = await diff(first, second, { on })
  numbers.diff = compared.relativeChange
  const written: Record<string, number[]> = {}
  for (const to of ['gguf', 'mlx'] as const) {
    const [out, back] = [new MemoryDirectory({}, to), new MemoryDirectory({}, 'peft')]
    await convertAdapter(llama, { to, base: llama, out, outDtype: 'fp16', on })
    for (const [name, bytes] of out.files) written[`${to}/${name}`] = [...bytes]
    if (to !== 'mlx') continue
    await convertAdapter(out, { to: 'peft', out: back })
    numbers.llama = sumOf(await loadAdapter(llama))
    numbers['back from mlx'] = sumOf(await loadAdapter(back))
  }
  const saved = new MemoryDirectory({}, 'saved')
  await saveAdapter(smaller.adapter, saved)
  numbers['saved files'] = saved.files.size
  const refused = await combine({ adapters: [dora, first], rank: 2 }).catch((error: Error) => error.message)
  return { numbers, written, progress, refused: String(refused) }
}
