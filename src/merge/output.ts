// What merging writes: several files that get their names together or not at all, and the report about them.

import type { ByteSink, ByteSource, Directory } from '../base/bytes.js'
import { FileError } from '../base/errors.js'
import type { SignalLike } from '../base/globals.js'
import type { LayerChange } from './weight.js'

/** What a merge wrote. */
export interface MergeReport {
  /** Where the result is: the folder's name and the weights' file in it. */
  out: string
  /** Number of tensors of the result, or of a job's share of it. */
  tensors: number
  /** How many of them hold merged weights. */
  changed: number
  /** Written in all. */
  bytes: number
  /** That it took. */
  seconds: number
  /** What adapters added to; values that they replace have no line here. */
  layers: LayerChange[]
}

/** What all merges take. */
export interface MergeOptions {
  /** Stops between two pieces: merging rejects with the signal's reason, and leaves at most files to resume from. */
  signal?: SignalLike | undefined
  /** Called after each piece that is written. */
  onProgress?: (progress: MergeProgress) => void
  /** Refuses adapters whose config has targets or patterns that match nothing of them. Default false. */
  strict?: boolean | undefined
}

/** How far a merge is. */
export interface MergeProgress {
  /** So far, with those kept of an earlier run. */
  writtenBytes: number
  /** Of the weights: what will be written, but for headers and small files. */
  totalBytes: number
  /** Of the written ones, those that an earlier run had finished; undefined: none. */
  keptBytes?: number
}

/** A folder whose new files appear when `commit` is called, in the order in which they were made. */
export class StagedDirectory implements Directory {
  readonly name: string
  readonly #target: Directory
  readonly #options: MergeOptions
  readonly #totalBytes: number
  #staged: { path: string; sink: ByteSink }[] = []
  #writtenBytes = 0

  constructor(target: Directory, totalBytes: number, options: MergeOptions) {
    this.name = target.name
    this.#target = target
    this.#totalBytes = totalBytes
    this.#options = options
  }

  get writtenBytes(): number {
    return this.#writtenBytes
  }

  list(): Promise<string[]> {
    return this.#target.list()
  }

  has(path: string): Promise<boolean> {
    return this.#target.has(path)
  }

  open(path: string): Promise<ByteSource> {
    return this.#target.open(path)
  }

  async create(path: string): Promise<ByteSink> {
    const sink = await this.#target.create(path)
    this.#staged.push({ path, sink })
    return {
      name: sink.name,
      write: async (bytes) => {
        this.#options.signal?.throwIfAborted()
        await sink.write(bytes)
        this.#writtenBytes += bytes.byteLength
        this.#options.onProgress?.({ writtenBytes: this.#writtenBytes, totalBytes: this.#totalBytes })
      },
      commit: async () => {},
      abort: () => sink.abort(),
    }
  }

  /** Takes back a file that was not committed yet, or removes one that was there before. */
  async remove(path: string): Promise<void> {
    const staged = this.#staged.filter((entry) => entry.path === path)
    this.#staged = this.#staged.filter((entry) => entry.path !== path)
    for (const { sink } of staged) await sink.abort()
    if (staged.length === 0) await this.#target.remove(path)
  }

  async commit(): Promise<void> {
    this.#options.signal?.throwIfAborted()
    const named: string[] = []
    try {
      for (const { path, sink } of this.#staged) {
        await sink.commit()
        named.push(path)
      }
    } catch (error) {
      for (const path of named) await this.#target.remove(path)
      throw error
    }
  }

  /** Drops what has not got its name yet. */
  async abort(): Promise<void> {
    // The first file may have made the folder, which goes only when it is empty.
    for (const { sink } of this.#staged.toReversed()) await sink.abort()
  }
}

/** Runs `write` on a staged folder: all its files appear, or none. */
export async function writeTogether<T>(
  target: Directory,
  totalBytes: number,
  options: MergeOptions,
  write: (staged: StagedDirectory) => Promise<T>,
): Promise<T> {
  const staged = new StagedDirectory(target, totalBytes, options)
  try {
    const result = await write(staged)
    await staged.commit()
    return result
  } catch (error) {
    await staged.abort()
    throw error
  }
}

/** Files that hold weights, or that make loaders look for other weights. */
const WEIGHTS =
  /\.(safetensors|bin|pt|pth|ckpt|h5|msgpack|gguf|onnx|npz|pkl)$|\.onnx[._]data(_\d+)?$|\.index\.json$|^adapter_config\.json$/

const COPY_BYTES = 4 << 20

/** Copies configuration, tokenizer and other files beside the weights, but no copy of the weights in another form. */
export async function copyCompanions(from: Directory, to: Directory): Promise<void> {
  for (const path of await from.list()) {
    if (WEIGHTS.test(path) || path.startsWith('.')) continue
    const source = await from.open(path)
    try {
      const sink = await to.create(path)
      for (let at = 0; at < source.byteLength; at += COPY_BYTES) {
        await sink.write(await source.read(at, Math.min(COPY_BYTES, source.byteLength - at)))
      }
      await sink.commit()
    } finally {
      await source.close()
    }
  }
}

/** Throws FileError when `path` in `out` is the file that is being read. */
export async function refuseBaseAsOutput(out: Directory, path: string, base: ByteSource): Promise<void> {
  if (base.realPath === undefined || !(await out.has(path))) return
  const existing = await out.open(path)
  await existing.close()
  if (existing.realPath !== base.realPath) return
  throw baseAsOutputError(existing.name)
}

export function baseAsOutputError(where: string): FileError {
  return new FileError({ where, what: 'the output is the base itself', hint: 'Choose another place for it' })
}
