// Examples of any task as numbers, one behind the other, in 4 bytes for a token and its label. Very many lie in a file.

import { isObject } from '../base/options.js'
import { joinedUp } from '../base/tensor.js'
import { IGNORED } from './records.js'

/** A file that stands in for memory. */
export interface TokenFile {
  /** Returns where they lie, for `read`. */
  write(tokens: Int32Array): number
  read(place: number, into: Int32Array): void
}

interface Place {
  readonly place: number
  readonly length: number
}

/** Examples that are stored, and read, together. */
const GROUP = 32
/** Numbers that stay in memory: 64 MiB. */
const KEPT = 1 << 24

/** Tokens of which those whose label is ignored have all bits turned. */
class Labeled extends Int32Array {}

/** A list of one Float64 is a number. */
const VIEWS = [Int32Array, Uint8Array, Float32Array, Float64Array, Labeled]
/** Kinds of other values. The low bits of a value's first number have its kind, and the others its length. */
const [JSON_TEXT, AS_IS, LIST, OBJECT] = [8, 9, 10, 11]
const KIND_BITS = 4

const [encoder, decoder] = [new TextEncoder(), new TextDecoder()]

export class ExampleStore<Example> implements Iterable<Example> {
  readonly #groups: (Int32Array | Place)[] = []
  /** The group that is not full. Of each example, the first number is how many there are. */
  #open: Int32Array[] = []
  #held = 0
  /** The group of the file that was read last. */
  #read = { group: -1, numbers: new Int32Array(0) }
  /** Values that are not made of texts and numbers. */
  readonly #objects: unknown[] = []
  #before: Float32Array | undefined

  /** Without `file`, all stays in memory. It is called when there are more than `kept` numbers. */
  constructor(
    private readonly file?: () => TokenFile,
    private readonly kept = KEPT,
  ) {}

  get length(): number {
    return this.#groups.length * GROUP + this.#open.length
  }

  /** False where all examples are made of texts and numbers. */
  get hasObjects(): boolean {
    return this.#objects.length > 0
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
    this.#groups.push(isKept ? group : { place: this.file().write(group), length: group.length })
  }

  /** Gives an example two numbers, which it has as `before` from then on: 8 bytes for each example. */
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
    if (this.#read.group !== group) {
      const numbers = new Int32Array(stored.length)
      this.file?.().read(stored.place, numbers)
      this.#read = { group, numbers }
    }
    return this.#read.numbers
  }

  *[Symbol.iterator](): Generator<Example> {
    for (let i = 0; i < this.length; i++) yield this.at(i) as Example
  }

  #write(given: unknown, to: number[]): void {
    const value = typeof given === 'number' ? Float64Array.of(given) : given
    const view = ArrayBuffer.isView(value) ? VIEWS.indexOf(value.constructor as typeof Labeled) : -1
    if (view >= 0) writeBytes(view, value as Int32Array, to)
    else if (Array.isArray(value)) {
      to.push(headOf(LIST, value.length))
      for (const one of value) this.#write(one, to)
    } else if (isObject(value) && Object.getPrototypeOf(value) === Object.prototype) {
      const fields = joined(value)
      const names = Object.keys(fields)
      to.push(headOf(OBJECT, names.length))
      this.#write(names.join(), to)
      for (const name of names) this.#write(fields[name], to)
    } else if (typeof value === 'function' || isObject(value)) to.push(headOf(AS_IS, this.#objects.push(value) - 1))
    else writeBytes(JSON_TEXT, encoder.encode(JSON.stringify(value)), to)
  }

  #valueOf(from: { readonly numbers: Int32Array; at: number }): unknown {
    const head = from.numbers[from.at++]
    const [kind, length] = [head & ((1 << KIND_BITS) - 1), head >>> KIND_BITS]
    if (kind === AS_IS) return this.#objects[length]
    if (kind === LIST) return Array.from({ length }, () => this.#valueOf(from))
    if (kind === OBJECT) {
      const names = String(this.#valueOf(from)).split(',', length)
      const fields: Record<string, unknown> = {}
      for (const name of names) {
        const own = this.#valueOf(from)
        if (own instanceof Labeled) Object.assign(fields, apart(own))
        else fields[name] = own
      }
      return fields
    }
    const bytes = from.numbers.buffer.slice(4 * from.at, 4 * from.at + length) as ArrayBuffer
    from.at += Math.ceil(length / 4)
    if (kind === JSON_TEXT) return length === 0 ? undefined : JSON.parse(decoder.decode(bytes))
    const view = new VIEWS[kind](bytes)
    return view instanceof Float64Array ? view[0] : view
  }
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

/** The fields with ids and labels as one. */
function joined(fields: Readonly<Record<string, unknown>>): Readonly<Record<string, unknown>> {
  const { inputIds: ids, labels, ...others } = fields
  if (!(ids instanceof Int32Array && labels instanceof Int32Array)) return fields
  return { ...others, inputIds: new Labeled(ids.map((id, i) => (labels[i] === IGNORED ? ~id : id))) }
}

function apart(own: Labeled) {
  const [inputIds, labels] = [new Int32Array(own), new Int32Array(own)]
  for (let i = 0; i < own.length; i++) {
    if (own[i] >= 0) continue
    inputIds[i] = ~own[i]
    labels[i] = IGNORED
  }
  return { inputIds, labels }
}
