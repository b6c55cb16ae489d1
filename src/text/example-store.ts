// Stores the examples of any task compactly, as numbers: a token with its label takes 4 bytes. If there are very many,
// most of them go to a file.

import { isObject } from '../base/options.js'
import { joinedUp } from '../base/tensor.js'
import { IGNORED } from './records.js'

/** A file that is used in place of memory. */
export interface TokenFile {
  /** Writes numbers, and returns a function that reads them back. */
  write(numbers: Int32Array): () => Int32Array
}

/** How many examples are stored and read together. */
const GROUP = 32
/** How many numbers stay in memory: 64 MiB. */
const KEPT = 1 << 24

/** Token ids and labels in one array. If the label is ignored, all bits of the id are inverted. */
class Labeled extends Int32Array {}

/** How values are stored. A Float64Array is a number, a Uint16Array a text. */
const VIEWS = [Int32Array, Uint8Array, Float32Array, Float64Array, Uint16Array, Labeled]
/**
 * The kinds of values that {@link VIEWS} does not list. The low bits of a value's first number are its kind, the rest
 * its length or place.
 */
const [AS_IS, LIST, OBJECT] = [8, 9, 10]
const KIND_BITS = 4

export class ExampleStore<Example> implements Iterable<Example> {
  readonly #groups: (Int32Array | (() => Int32Array))[] = []
  /** The last group, which is not full yet. Each example begins with the count of its numbers. */
  #open: Int32Array[] = []
  #held = 0
  /** The group that was last read from the file. */
  #read: { readonly group: number; readonly numbers: Int32Array } | undefined
  /** Lists of field names and values that cannot be written as numbers, and the index of each in `#values`. */
  readonly #values: unknown[] = []
  readonly #places = new Map<unknown, number>()
  /** Whether any example holds an object that is kept as it is. Texts, numbers, lists and plain objects are not. */
  hasObjects = false
  #before: Float32Array | undefined

  /** `file` is called when there are more than `kept` numbers. Without it, everything stays in memory. */
  constructor(
    private readonly file?: () => TokenFile,
    private readonly kept = KEPT,
  ) {}

  get length(): number {
    return this.#groups.length * GROUP + this.#open.length
  }

  push(example: Example): void {
    const numbers = [0]
    this.#write(example, numbers)
    numbers[0] = numbers.length
    if (this.#open.push(new Int32Array(numbers)) < GROUP) return
    const group = joinedUp(this.#open, Int32Array)
    this.#open = []
    this.#held += group.length
    const isKept = this.file === undefined || this.#held <= this.kept
    this.#groups.push(isKept ? group : this.file().write(group))
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
    const isOpen = group === this.#groups.length
    const numbers = isOpen ? this.#open[index % GROUP] : this.#numbersOf(group)
    let at = 0
    if (!isOpen) for (let left = index % GROUP; left > 0; left--) at += numbers[at]
    const example = this.#valueOf({ numbers, at: at + 1 }) as Example
    const before = this.#before?.slice(2 * index, 2 * index + 2)
    return before === undefined ? example : { ...example, before }
  }

  #numbersOf(group: number): Int32Array {
    const stored = this.#groups[group]
    if (stored instanceof Int32Array) return stored
    if (this.#read?.group !== group) this.#read = { group, numbers: stored() }
    return this.#read.numbers
  }

  *[Symbol.iterator](): Generator<Example> {
    for (let i = 0; i < this.length; i++) yield this.at(i) as Example
  }

  #write(given: unknown, to: number[]): void {
    const value =
      typeof given === 'number' ? Float64Array.of(given) : typeof given === 'string' ? unitsOf(given) : given
    const view = ArrayBuffer.isView(value) ? VIEWS.indexOf(value.constructor as typeof Labeled) : -1
    if (view >= 0) writeBytes(view, value as Int32Array, to)
    else if (Array.isArray(value)) {
      to.push(headOf(LIST, value.length))
      for (const item of value) this.#write(item, to)
    } else if (isObject(value) && Object.getPrototypeOf(value) === Object.prototype) {
      const fields = joined(value)
      const names = Object.keys(fields)
      to.push(headOf(OBJECT, this.#placeOf(names.join(), names)))
      for (const name of names) this.#write(fields[name], to)
    } else {
      this.hasObjects ||= isObject(value)
      to.push(headOf(AS_IS, this.#placeOf(value)))
    }
  }

  #placeOf(key: unknown, value = key): number {
    const place = this.#places.get(key) ?? this.#values.push(value) - 1
    this.#places.set(key, place)
    return place
  }

  #valueOf(from: { readonly numbers: Int32Array; at: number }): unknown {
    const head = from.numbers[from.at++]
    const [kind, length] = [head & ((1 << KIND_BITS) - 1), head >>> KIND_BITS]
    if (kind === AS_IS) return this.#values[length]
    if (kind === LIST) return Array.from({ length }, () => this.#valueOf(from))
    if (kind === OBJECT) {
      const fields: Record<string, unknown> = {}
      for (const name of this.#values[length] as string[]) {
        const field = this.#valueOf(from)
        if (field instanceof Labeled) Object.assign(fields, apart(field))
        else fields[name] = field
      }
      return fields
    }
    const bytes = from.numbers.buffer.slice(4 * from.at, 4 * from.at + length) as ArrayBuffer
    from.at += Math.ceil(length / 4)
    const view = new VIEWS[kind](bytes)
    if (view instanceof Uint16Array) return view.reduce((text, unit) => text + String.fromCharCode(unit), '')
    return view instanceof Float64Array ? view[0] : view
  }
}

function unitsOf(text: string): Uint16Array {
  const units = new Uint16Array(text.length)
  for (let i = 0; i < text.length; i++) units[i] = text.charCodeAt(i)
  return units
}

function headOf(kind: number, length: number): number {
  return (length << KIND_BITS) | kind
}

function writeBytes(kind: number, { buffer, byteOffset, byteLength }: ArrayBufferView, to: number[]): void {
  to.push(headOf(kind, byteLength))
  const whole = new Uint8Array(4 * Math.ceil(byteLength / 4))
  whole.set(new Uint8Array(buffer, byteOffset, byteLength))
  for (const number of new Int32Array(whole.buffer)) to.push(number)
}

/** Replaces `inputIds` and `labels` with one labeled array. */
function joined(fields: Readonly<Record<string, unknown>>): Readonly<Record<string, unknown>> {
  const { inputIds: ids, labels, ...others } = fields
  if (!(ids instanceof Int32Array && labels instanceof Int32Array)) return fields
  return { ...others, inputIds: new Labeled(ids.map((id, i) => (labels[i] === IGNORED ? ~id : id))) }
}

function apart(labeled: Labeled) {
  const [inputIds, labels] = [new Int32Array(labeled), new Int32Array(labeled)]
  for (let i = 0; i < labeled.length; i++) {
    if (labeled[i] >= 0) continue
    inputIds[i] = ~labeled[i]
    labels[i] = IGNORED
  }
  return { inputIds, labels }
}
