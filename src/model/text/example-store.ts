// Stores the examples of any task in groups. In Node a full group goes to a file, as bytes.

/** Keeps examples outside of JavaScript's heap. */
export interface ExampleFile {
  /** Writes a group of examples, and returns its number. Returns undefined if they cannot be written. */
  write(examples: readonly unknown[]): number | undefined
  read(group: number): unknown[]
}

/** How many examples are stored and read together. */
const GROUP = 32

export class ExampleStore<Example> implements Iterable<Example> {
  /** Groups, or their numbers in the file. */
  readonly #groups: (readonly Example[] | number)[] = []
  #file: ExampleFile | undefined
  /** The last group, which is not full yet. */
  #open: Example[] = []
  #read: { readonly group: number; readonly examples: readonly Example[] } | undefined
  #before: Float32Array | undefined
  readonly #fields = new Set<string>()

  /** `file` is called with the first full group. Without it, the examples stay as they are. */
  constructor(private readonly file?: () => ExampleFile) {}

  get length(): number {
    return this.#groups.length * GROUP + this.#open.length
  }

  /** True if some example has such a field. */
  has(field: string): boolean {
    return this.#fields.has(field)
  }

  push(example: Example): void {
    for (const field in example) this.#fields.add(field)
    if (this.#open.push(example) < GROUP) return
    this.#file ??= this.file?.()
    this.#groups.push(this.#file?.write(this.#open) ?? this.#open)
    this.#open = []
  }

  /** Sets the field `before` of an example. The first call takes 8 bytes for every example of the store. */
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
    if (typeof stored !== 'number') return stored
    if (this.#read?.group !== group) this.#read = { group, examples: this.#file!.read(stored) as Example[] }
    return this.#read.examples
  }

  *[Symbol.iterator](): Generator<Example> {
    for (let i = 0; i < this.length; i++) yield this.at(i) as Example
  }
}
