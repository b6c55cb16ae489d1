// Stores the examples of any task. If there are very many, most of them go to a file.

import { isObject } from '../base/options.js'

/** A file that is used in place of memory. */
export interface ExampleFile {
  /** Writes examples, and returns a function that reads them back. Returns undefined if no file can hold them. */
  write(examples: readonly unknown[]): (() => unknown[]) | undefined
}

/** How many examples are stored and read together. */
const GROUP = 32
/** How many bytes stay in memory: 64 MiB. */
const KEPT_BYTES = 1 << 26
/** What an object or a list takes besides its values, and a typed array with its buffer. */
const [OBJECT_BYTES, BUFFER_BYTES] = [100, 400]

export class ExampleStore<Example> implements Iterable<Example> {
  readonly #groups: (readonly Example[] | (() => readonly Example[]))[] = []
  /** The last group, which is not full yet. */
  #open: Example[] = []
  #heldBytes = 0
  /** The group that was last read from the file. */
  #read: { readonly group: number; readonly examples: readonly Example[] } | undefined
  #before: Float32Array | undefined

  /** `file` is called when the examples take more than `keptBytes`. Without it, everything stays in memory. */
  constructor(
    private readonly file?: () => ExampleFile,
    private readonly keptBytes = KEPT_BYTES,
  ) {}

  get length(): number {
    return this.#groups.length * GROUP + this.#open.length
  }

  push(example: Example): void {
    this.#heldBytes += sizeOf(example)
    if (this.#open.push(example) < GROUP) return
    const isKept = this.file === undefined || this.#heldBytes <= this.keptBytes
    const written = isKept ? undefined : (this.file().write(this.#open) as (() => Example[]) | undefined)
    this.#groups.push(written ?? this.#open)
    this.#open = []
  }

  /**
   * Stores two numbers as the field `before` of an example. The first call takes 8 bytes for every example of the
   * store.
   */
  mark(index: number, before: readonly [number, number]): void {
    this.#before ??= new Float32Array(2 * this.length).fill(Number.NaN)
    this.#before.set(before, 2 * index)
  }

  at(index: number): Example | undefined {
    if (index < 0 || index >= this.length) return undefined
    const group = Math.floor(index / GROUP)
    const example = (this.#groups[group] === undefined ? this.#open : this.#examplesOf(group))[index - group * GROUP]
    const before = this.#before?.slice(2 * index, 2 * index + 2)
    return before === undefined ? example : { ...example, before }
  }

  #examplesOf(group: number): readonly Example[] {
    const stored = this.#groups[group]
    if (typeof stored !== 'function') return stored
    if (this.#read?.group !== group) this.#read = { group, examples: stored() }
    return this.#read.examples
  }

  *[Symbol.iterator](): Generator<Example> {
    for (let i = 0; i < this.length; i++) yield this.at(i) as Example
  }
}

function sizeOf(value: unknown): number {
  if (typeof value === 'string') return 2 * value.length
  if (ArrayBuffer.isView(value)) return BUFFER_BYTES + value.byteLength
  // Examples of one run may share an object that is not data, such as what reads their pictures.
  if (!Array.isArray(value) && !(isObject(value) && Object.getPrototypeOf(value) === Object.prototype)) return 8
  return Object.values(value).reduce((sum: number, item) => sum + sizeOf(item), OBJECT_BYTES)
}
