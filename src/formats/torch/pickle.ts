// A pickle machine that builds plain values and calls nothing: the opcodes that torch.save writes (Python's
// pickletools, protocols 2 to 5), and of all classes and functions only those that the host names. Everything else is
// refused with its offset.

import { FormatError, UnsupportedError } from '../../base/errors.js'
import { PickleDict, PickleGlobal, PickleList, PickleObject, PickleTuple, type PickleValue } from './pickle-values.js'

/** A memo entry or a stack item for each few bytes. */
export const MAX_PICKLE_BYTES = 1 << 26
/** Python's pickler puts at most 2000 items on its stack for one dict. */
const MAX_STACK = 1 << 16
const MAX_MEMO = 1 << 21
/**
 * Tuples, dicts and what the host makes, each time they are pushed: a tensor has twelve. One takes up to 300 bytes of
 * memory, in the file one.
 */
const MAX_OBJECTS = 1 << 21
/** Longer integers are no sizes. */
const MAX_INTEGER_BYTES = 8

/** The names that a pickle may use, and their meaning. */
export interface PickleHost {
  /** The value of `module.name`; undefined to refuse it. */
  global(name: string): PickleGlobal | undefined
  /** The value of a persistent id. Throws FormatError or UnsupportedError. */
  persistent(id: PickleValue, where: string): PickleValue
}

/** Names of opcodes that are known, and never run. */
const REFUSED: ReadonlyMap<number, string> = new Map([
  [0x30, 'POP'],
  [0x31, 'POP_MARK'],
  [0x32, 'DUP'],
  [0x42, 'BINBYTES'],
  [0x43, 'SHORT_BINBYTES'],
  [0x46, 'FLOAT'],
  [0x49, 'INT'],
  [0x4c, 'LONG'],
  [0x50, 'PERSID'],
  [0x53, 'STRING'],
  [0x54, 'BINSTRING'],
  [0x55, 'SHORT_BINSTRING'],
  [0x56, 'UNICODE'],
  [0x64, 'DICT'],
  [0x67, 'GET'],
  [0x69, 'INST'],
  [0x6c, 'LIST'],
  [0x6f, 'OBJ'],
  [0x70, 'PUT'],
  [0x81, 'NEWOBJ'],
  [0x82, 'EXT1'],
  [0x83, 'EXT2'],
  [0x84, 'EXT4'],
  [0x8b, 'LONG4'],
  [0x8d, 'BINUNICODE8'],
  [0x8e, 'BINBYTES8'],
  [0x8f, 'EMPTY_SET'],
  [0x90, 'ADDITEMS'],
  [0x91, 'FROZENSET'],
  [0x92, 'NEWOBJ_EX'],
  [0x96, 'BYTEARRAY8'],
  [0x97, 'NEXT_BUFFER'],
  [0x98, 'READONLY_BUFFER'],
])

const MARK = Symbol('mark')

/**
 * The value of a pickle.
 *
 * @param file names the file in errors
 * @throws FormatError when the bytes are no pickle, or one that Python could not load; UnsupportedError that names the
 *   opcode or the global, and its offset, when it is not on the list
 */
export function parsePickle(bytes: Uint8Array, file: string, host: PickleHost): PickleValue {
  return new Machine(bytes, file, host).run()
}

class Machine {
  #at = 0
  readonly #bytes: Uint8Array
  readonly #view: DataView
  readonly #file: string
  readonly #host: PickleHost
  readonly #stack: (PickleValue | typeof MARK)[] = []
  readonly #memo = new Map<number, PickleValue>()
  #objects = 0
  /** The place of the opcode that runs. */
  #opcodeAt = 0

  constructor(bytes: Uint8Array, file: string, host: PickleHost) {
    this.#bytes = bytes
    this.#view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength)
    this.#file = file
    this.#host = host
  }

  run(): PickleValue {
    for (;;) {
      this.#opcodeAt = this.#at
      const opcode = this.#bytes[this.#take(1)]
      if (opcode === 0x2e /* STOP */) {
        const value = this.#pop()
        if (this.#stack.length > 0) this.#fail('STOP with more than one value')
        if (this.#at !== this.#bytes.length) this.#fail(`the file goes on after its pickle’s end at ${this.#at}`)
        return value
      }
      this.#step(opcode)
    }
  }

  #step(opcode: number): void {
    const value = this.#valueOf(opcode)
    if (value !== undefined) this.#push(value)
    else if (!this.#act(opcode)) this.#refuse(opcode)
  }

  /** The value that an opcode pushes; undefined if it does something else. */
  #valueOf(opcode: number): PickleValue | typeof MARK | undefined {
    const view = this.#view
    switch (opcode) {
      case 0x4e: // NONE
        return null
      case 0x88: // NEWTRUE
        return true
      case 0x89: // NEWFALSE
        return false
      case 0x4a: // BININT
        return view.getInt32(this.#take(4), true)
      case 0x4b: // BININT1
        return view.getUint8(this.#take(1))
      case 0x4d: // BININT2
        return view.getUint16(this.#take(2), true)
      case 0x8a: // LONG1
        return this.#integer(view.getUint8(this.#take(1)))
      case 0x47: // BINFLOAT
        return view.getFloat64(this.#take(8), false)
      case 0x58: // BINUNICODE
        return this.#text(view.getUint32(this.#take(4), true))
      case 0x8c: // SHORT_BINUNICODE
        return this.#text(view.getUint8(this.#take(1)))
      case 0x28: // MARK
        return MARK
      case 0x29: // EMPTY_TUPLE
        return new PickleTuple([])
      case 0x85: // TUPLE1
      case 0x86: // TUPLE2
      case 0x87: // TUPLE3
        return new PickleTuple(this.#popMany(opcode - 0x84))
      case 0x74: // TUPLE
        return new PickleTuple(this.#popMarked())
      case 0x5d: // EMPTY_LIST
        return new PickleList()
      case 0x7d: // EMPTY_DICT
        return new PickleDict()
      case 0x68: // BINGET
        return this.#remembered(view.getUint8(this.#take(1)))
      case 0x6a: // LONG_BINGET
        return this.#remembered(view.getUint32(this.#take(4), true))
      case 0x63: // GLOBAL
        return this.#global(this.#line(), this.#line())
      case 0x93: // STACK_GLOBAL
        return this.#global(...this.#popMany(2))
      case 0x52: // REDUCE
        return this.#reduce()
      case 0x62: // BUILD
        return this.#build()
      case 0x51: // BINPERSID
        return this.#host.persistent(this.#pop(), this.#where())
    }
  }

  /** False for an opcode that is not on the list. */
  #act(opcode: number): boolean {
    switch (opcode) {
      case 0x80: // PROTO
        this.#checkProtocol(this.#view.getUint8(this.#take(1)))
        return true
      case 0x95: // FRAME
        this.#take(8)
        return true
      case 0x61: // APPEND
        this.#append(this.#popMany(1))
        return true
      case 0x65: // APPENDS
        this.#append(this.#popMarked())
        return true
      case 0x73: // SETITEM
        this.#setItems(this.#popMany(2))
        return true
      case 0x75: // SETITEMS
        this.#setItems(this.#popMarked())
        return true
      case 0x71: // BINPUT
        this.#remember(this.#view.getUint8(this.#take(1)))
        return true
      case 0x72: // LONG_BINPUT
        this.#remember(this.#view.getUint32(this.#take(4), true))
        return true
      case 0x94: // MEMOIZE
        this.#remember(this.#memo.size)
        return true
    }
    return false
  }

  #where(): string {
    return `${this.#file}: byte ${this.#opcodeAt}`
  }

  #fail(what: string): never {
    throw new FormatError({ where: this.#where(), what: `not a pickle that can be read: ${what}` })
  }

  #refuse(opcode: number): never {
    const code = `0x${opcode.toString(16).padStart(2, '0')}`
    const name = REFUSED.get(opcode)
    if (name === undefined) this.#fail(`no opcode ${code}`)
    throw new UnsupportedError({
      where: this.#where(),
      what: `the pickle opcode ${name} (${code}) is refused: it has no place in a file of tensors. Nothing was run`,
    })
  }

  #take(count: number): number {
    const at = this.#at
    if (at + count > this.#bytes.length) {
      throw new FormatError({
        where: this.#where(),
        what: 'the pickle goes on after the end',
        hint: 'The file may be cut short: download it again',
      })
    }
    this.#at += count
    return at
  }

  #checkProtocol(protocol: number): void {
    if (this.#opcodeAt !== 0) this.#fail('PROTO after the beginning')
    if (protocol < 2 || protocol > 5) this.#fail(`no protocol ${protocol}`)
  }

  #push(value: PickleValue | typeof MARK): void {
    if (this.#stack.length >= MAX_STACK) this.#fail(`more than ${MAX_STACK} items on the stack`)
    if (value instanceof PickleObject && ++this.#objects > MAX_OBJECTS) this.#fail(`more than ${MAX_OBJECTS} objects`)
    this.#stack.push(value)
  }

  #pop(): PickleValue {
    const value = this.#stack.pop()
    if (value === undefined || value === MARK) this.#fail('the stack has nothing to take')
    return value
  }

  #popMany(count: number): PickleValue[] {
    const items = Array.from({ length: count }, () => this.#pop())
    return items.reverse()
  }

  #popMarked(): PickleValue[] {
    const mark = this.#stack.lastIndexOf(MARK)
    if (mark < 0) this.#fail('no mark')
    const items = this.#stack.splice(mark) as PickleValue[]
    return items.slice(1)
  }

  #integer(byteLength: number): number | bigint {
    if (byteLength > MAX_INTEGER_BYTES) this.#fail(`an integer of ${byteLength} bytes`)
    const start = this.#take(byteLength)
    let value = 0n
    for (let i = byteLength - 1; i >= 0; i--) value = (value << 8n) | BigInt(this.#bytes[start + i])
    value = BigInt.asIntN(Math.max(1, 8 * byteLength), value)
    const number = Number(value)
    return Number.isSafeInteger(number) ? number : value
  }

  #text(byteLength: number): string {
    const start = this.#take(byteLength)
    try {
      const bytes = this.#bytes.subarray(start, start + byteLength)
      return new TextDecoder('utf-8', { fatal: true, ignoreBOM: true }).decode(bytes)
    } catch {
      this.#fail('a string that is not UTF-8')
    }
  }

  /** Up to a line feed. Names of modules are short. */
  #line(): string {
    const end = this.#bytes.subarray(0, this.#at + 256).indexOf(0x0a, this.#at)
    if (end < 0) {
      this.#take(256)
      this.#fail('a name of more than 256 bytes')
    }
    const line = this.#text(end - this.#at)
    this.#take(1)
    return line
  }

  #append(items: readonly PickleValue[]): void {
    const list = this.#stack.at(-1)
    if (!(list instanceof PickleList)) this.#fail('items for something that is no list')
    for (const item of items) list.items.push(item)
  }

  #setItems(items: readonly PickleValue[]): void {
    const dict = this.#stack.at(-1)
    if (!(dict instanceof PickleDict)) this.#fail('items for something that is no dict')
    if (items.length % 2 !== 0) this.#fail('a key without a value')
    for (let i = 0; i < items.length; i += 2) {
      const key = items[i]
      if (typeof key !== 'string' && typeof key !== 'number') this.#fail('a dict key that is no string and no number')
      if (dict.entries.has(key)) this.#fail(`the key ${JSON.stringify(key).slice(0, 200)} occurs twice in one dict`)
      dict.entries.set(key, items[i + 1])
    }
  }

  #remembered(index: number): PickleValue {
    const value = this.#memo.get(index)
    if (value === undefined) this.#fail(`nothing is remembered as ${index}`)
    return value
  }

  #remember(index: number): void {
    const value = this.#stack.at(-1)
    if (value === undefined || value === MARK) this.#fail('nothing to remember')
    if (this.#memo.size >= MAX_MEMO) this.#fail(`more than ${MAX_MEMO} remembered values`)
    this.#memo.set(index, value)
  }

  #global(...[module, name]: readonly PickleValue[]): PickleGlobal {
    if (typeof module !== 'string' || typeof name !== 'string') this.#fail('STACK_GLOBAL without two strings')
    const full = `${module}.${name}`
    const found = this.#host.global(full)
    if (found === undefined) {
      throw new UnsupportedError({
        where: this.#where(),
        what: `the pickle asks for ${full.slice(0, 200)}, which is refused: a file of tensors does not need it. Nothing was run`,
        hint: 'If you trust the file, save its tensors as adapter_model.safetensors',
      })
    }
    return found
  }

  #reduce(): PickleValue {
    const [callee, args] = this.#popMany(2)
    if (!(args instanceof PickleTuple)) this.#fail('REDUCE without a tuple of arguments')
    if (!(callee instanceof PickleGlobal)) this.#fail('REDUCE of something that is no function')
    if (callee.call === undefined) this.#fail(`REDUCE of ${callee.name}, which is never called`)
    return callee.call(args.items, this.#where())
  }

  /** Attributes: torch gives a state dict `_metadata`, the versions of its modules, which no tensor depends on. */
  #build(): PickleValue {
    const [target, state] = this.#popMany(2)
    const isMetadata =
      target instanceof PickleDict &&
      target.isOrdered &&
      state instanceof PickleDict &&
      state.entries.size === (state.entries.has('_metadata') ? 1 : 0)
    if (!isMetadata) {
      throw new UnsupportedError({
        where: this.#where(),
        what: 'the pickle opcode BUILD (0x62) is refused but for a state dict’s _metadata. Nothing was run',
      })
    }
    return target
  }
}
