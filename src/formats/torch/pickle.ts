// A pickle machine that builds plain values and calls nothing: the opcodes that torch.save writes (pickletools,
// protocols 2 to 5), and of all classes and functions only those that the host names. All else is refused.

import { FormatError, UnsupportedError } from '../../base/errors.js'

/**
 * An integer is a bigint where a number would not be exact. Dicts are Maps and classes are names: no value can be
 * mistaken for a part of this program.
 */
export type PickleValue = null | boolean | number | bigint | string | PickleObject

/** Hosts derive what their globals make from it. */
export abstract class PickleObject {
  /** For messages. */
  abstract readonly kind: string
}

export class PickleTuple extends PickleObject {
  readonly kind = 'tuple'

  constructor(readonly items: readonly PickleValue[]) {
    super()
  }
}

class PickleList extends PickleObject {
  readonly kind = 'list'
  readonly items: PickleValue[] = []
}

/** In the order of insertion. */
export class PickleDict extends PickleObject {
  readonly kind = 'dict'
  readonly entries = new Map<string | number, PickleValue>()

  /** `isOrdered`: a collections.OrderedDict, which can have attributes. */
  constructor(readonly isOrdered = false) {
    super()
  }
}

/** `call` stands for calling the class or function. */
export class PickleGlobal extends PickleObject {
  readonly kind = 'global'

  constructor(
    readonly name: string,
    readonly call?: (args: readonly PickleValue[], where: string) => PickleValue,
  ) {
    super()
  }
}

/** A memo entry or a stack item for each few bytes. */
export const MAX_PICKLE_BYTES = 1 << 26
/** Python's pickler puts at most 2000 items on its stack for one dict. */
const MAX_STACK = 1 << 16
const MAX_MEMO = 1 << 21
/** A tensor has twelve. One takes up to 300 bytes of memory, in the file one. */
const MAX_OBJECTS = 1 << 21
/** Longer integers are no sizes. */
const MAX_INTEGER_BYTES = 8

export interface PickleHost {
  /** Undefined refuses `module.name`. */
  global(name: string): PickleGlobal | undefined
  persistent(id: PickleValue, where: string): PickleValue
}

/** Opcodes that are known, and never run. */
const REFUSED: ReadonlyMap<number, string> = new Map(
  `POP 30, POP_MARK 31, DUP 32, BINBYTES 42, SHORT_BINBYTES 43, FLOAT 46, INT 49, LONG 4c, PERSID 50, STRING 53,
  BINSTRING 54, SHORT_BINSTRING 55, UNICODE 56, DICT 64, GET 67, INST 69, LIST 6c, OBJ 6f, PUT 70, NEWOBJ 81, EXT1 82,
  EXT2 83, EXT4 84, LONG4 8b, BINUNICODE8 8d, BINBYTES8 8e, EMPTY_SET 8f, ADDITEMS 90, FROZENSET 91, NEWOBJ_EX 92,
  BYTEARRAY8 96, NEXT_BUFFER 97, READONLY_BUFFER 98`
    .split(',')
    .map((entry) => entry.trim().split(' '))
    .map(([name, number]) => [Number.parseInt(number, 16), name]),
)

const MARK = Symbol('mark')

/** Throws UnsupportedError that names the opcode or the global, and its offset, when it is not on the list. */
export function parsePickle(bytes: Uint8Array, file: string, host: PickleHost): PickleValue {
  return new Machine(bytes, file, host).run()
}

class Machine {
  static readonly #VALUES: ReadonlyMap<number, (machine: Machine) => PickleValue | typeof MARK> = new Map([
    [0x4e /* NONE */, () => null],
    [0x88 /* NEWTRUE */, () => true],
    [0x89 /* NEWFALSE */, () => false],
    [0x4a /* BININT */, (m) => m.#view.getInt32(m.#take(4), true)],
    [0x4b /* BININT1 */, (m) => m.#u8()],
    [0x4d /* BININT2 */, (m) => m.#view.getUint16(m.#take(2), true)],
    [0x8a /* LONG1 */, (m) => m.#integer(m.#u8())],
    [0x47 /* BINFLOAT */, (m) => m.#view.getFloat64(m.#take(8), false)],
    [0x58 /* BINUNICODE */, (m) => m.#text(m.#u32())],
    [0x8c /* SHORT_BINUNICODE */, (m) => m.#text(m.#u8())],
    [0x28 /* MARK */, () => MARK],
    [0x29 /* EMPTY_TUPLE */, () => new PickleTuple([])],
    [0x85 /* TUPLE1 */, (m) => new PickleTuple(m.#popMany(1))],
    [0x86 /* TUPLE2 */, (m) => new PickleTuple(m.#popMany(2))],
    [0x87 /* TUPLE3 */, (m) => new PickleTuple(m.#popMany(3))],
    [0x74 /* TUPLE */, (m) => new PickleTuple(m.#popMarked())],
    [0x5d /* EMPTY_LIST */, () => new PickleList()],
    [0x7d /* EMPTY_DICT */, () => new PickleDict()],
    [0x68 /* BINGET */, (m) => m.#remembered(m.#u8())],
    [0x6a /* LONG_BINGET */, (m) => m.#remembered(m.#u32())],
    [0x63 /* GLOBAL */, (m) => m.#global(m.#line(), m.#line())],
    [0x93 /* STACK_GLOBAL */, (m) => m.#global(...m.#popMany(2))],
    [0x52 /* REDUCE */, (m) => m.#reduce()],
    [0x62 /* BUILD */, (m) => m.#build()],
    [0x51 /* BINPERSID */, (m) => m.host.persistent(m.#pop(), m.#where())],
  ] as [number, (machine: Machine) => PickleValue | typeof MARK][])
  static readonly #ACTS: ReadonlyMap<number, (machine: Machine) => unknown> = new Map([
    [0x80 /* PROTO */, (m) => m.#checkProtocol(m.#u8())],
    [0x95 /* FRAME */, (m) => m.#take(8)],
    [0x61 /* APPEND */, (m) => m.#append(m.#popMany(1))],
    [0x65 /* APPENDS */, (m) => m.#append(m.#popMarked())],
    [0x73 /* SETITEM */, (m) => m.#setItems(m.#popMany(2))],
    [0x75 /* SETITEMS */, (m) => m.#setItems(m.#popMarked())],
    [0x71 /* BINPUT */, (m) => m.#remember(m.#u8())],
    [0x72 /* LONG_BINPUT */, (m) => m.#remember(m.#u32())],
    [0x94 /* MEMOIZE */, (m) => m.#remember(m.#memo.size)],
  ] as [number, (machine: Machine) => unknown][])
  #at = 0
  readonly #view: DataView
  readonly #stack: (PickleValue | typeof MARK)[] = []
  readonly #memo = new Map<number, PickleValue>()
  #objects = 0
  #opcodeAt = 0

  constructor(
    private readonly bytes: Uint8Array,
    private readonly file: string,
    private readonly host: PickleHost,
  ) {
    this.#view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength)
  }

  run(): PickleValue {
    for (;;) {
      this.#opcodeAt = this.#at
      const opcode = this.bytes[this.#take(1)]
      if (opcode === 0x2e /* STOP */) {
        const value = this.#pop()
        if (this.#stack.length > 0) this.#fail('STOP with more than one value')
        if (this.#at !== this.bytes.length) this.#fail(`the file goes on after its pickle’s end at ${this.#at}`)
        return value
      }
      const push = Machine.#VALUES.get(opcode)
      const act = Machine.#ACTS.get(opcode)
      if (push !== undefined) this.#push(push(this))
      else if (act !== undefined) act(this)
      else this.#refuse(opcode)
    }
  }

  #where(): string {
    return `${this.file}: byte ${this.#opcodeAt}`
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
    if (at + count > this.bytes.length) {
      throw new FormatError({
        where: this.#where(),
        what: 'the pickle goes on after the end',
        hint: 'The file may be cut short: download it again',
      })
    }
    this.#at += count
    return at
  }

  #u8(): number {
    return this.#view.getUint8(this.#take(1))
  }

  #u32(): number {
    return this.#view.getUint32(this.#take(4), true)
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
    for (let i = byteLength - 1; i >= 0; i--) value = (value << 8n) | BigInt(this.bytes[start + i])
    value = BigInt.asIntN(Math.max(1, 8 * byteLength), value)
    const number = Number(value)
    return Number.isSafeInteger(number) ? number : value
  }

  #text(byteLength: number): string {
    const start = this.#take(byteLength)
    try {
      const bytes = this.bytes.subarray(start, start + byteLength)
      return new TextDecoder('utf-8', { fatal: true, ignoreBOM: true }).decode(bytes)
    } catch {
      this.#fail('a string that is not UTF-8')
    }
  }

  /** Names of modules are short. */
  #line(): string {
    const end = this.bytes.subarray(0, this.#at + 256).indexOf(0x0a, this.#at)
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
    const found = this.host.global(full)
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

  /** torch gives a state dict `_metadata`, the versions of its modules, which no tensor depends on. */
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
