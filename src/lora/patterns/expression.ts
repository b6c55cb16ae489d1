// Matches Python's regular expressions in time that grows with expression × text, whatever both are: backtracking in
// Python's own order, but never twice from the same place (memoized, as in Spencer's and V8's experimental engines).
// Only back-references need real backtracking, within a limit.

import { type CharacterTest, type Expression, ExpressionError } from '../../base/expressions/parse.js'

/** Longer programs come from no person: `{1000}` in `{1000}` does. */
const MAX_INSTRUCTIONS = 200_000
/** Steps for one text. A list of 1000 full names after `.*` needs less than half. */
const MAX_STEPS = 1 << 20
/** The same with back-references, where a step costs more. */
const MAX_REFERENCE_STEPS = 1 << 17
/**
 * Steps for all texts and all expressions of a config: ten times what a list of 1000 full names on 1000 names needs,
 * and at most two seconds. A step of a long program takes up to 0.2 µs, because its places do not fit the processor's
 * cache.
 */
export const MAX_TOTAL_STEPS = 1 << 23
/** A larger table of places is kept as a set. */
const MAX_TABLE_BITS = 1 << 25
/** To clear so many bytes takes about as long as a step. */
const BYTES_PER_STEP = 256

/** The steps that the matchers which share it have taken together. */
export interface StepCount {
  steps: number
}

type Instruction =
  | { readonly op: 'character'; readonly test: CharacterTest }
  | { readonly op: 'position'; readonly test: (text: readonly number[], at: number) => boolean }
  | {
      readonly op: 'split'
      readonly first: number
      readonly second: number
      /** The instruction after a loop; only loops have it. */
      readonly exit?: number
    }
  | { readonly op: 'save'; readonly slot: number }
  | { readonly op: 'reference'; readonly number: number; readonly isCaseless: boolean }
  | {
      readonly op: 'look'
      readonly program: readonly Instruction[]
      readonly isBehind: boolean
      readonly isNegative: boolean
    }
  | { readonly op: 'end' }

/** An expression that is ready to match. */
export class Matcher {
  readonly #program: readonly Instruction[]
  readonly #hasReferences: boolean
  readonly #total: StepCount

  /** @throws ExpressionError when it does not compile */
  constructor(expression: Expression, total: StepCount = { steps: 0 }) {
    this.#total = total
    const compiler = new Compiler()
    this.#program = compiler.compile(expression)
    this.#hasReferences = compiler.hasReferences
  }

  /** As Python's `re.fullmatch`. Throws ExpressionError when it takes too long. */
  test(text: string): boolean {
    return this.matchEnd(text, (end, length) => end === length) !== undefined
  }

  /**
   * Finds the end of the first match from the text's beginning whose end is accepted, in Python's order. Ends count
   * code points. Throws ExpressionError when it takes too long.
   */
  matchEnd(text: string, accepts: (end: number, length: number) => boolean): number | undefined {
    const codes = Array.from(text, (character) => character.codePointAt(0)!)
    return new Run(codes, this.#hasReferences, this.#total).match(this.#program, 0, (end) => accepts(end, codes.length))
      ?.at
  }
}

class Compiler {
  hasReferences = false
  #count = 0

  compile(expression: Expression): Instruction[] {
    const program: Instruction[] = []
    this.#add(expression, program)
    program.push({ op: 'end' })
    return program
  }

  #add(expression: Expression, program: Instruction[]): void {
    if (++this.#count > MAX_INSTRUCTIONS) throw new ExpressionError('it is too large')
    switch (expression.kind) {
      case 'character':
        program.push({ op: 'character', test: expression.test })
        return
      case 'position':
        program.push({ op: 'position', test: expression.test })
        return
      case 'sequence':
        for (const item of expression.items) this.#add(item, program)
        return
      case 'choice':
        this.#addChoice(expression.options, program)
        return
      case 'repeat':
        this.#addRepeat(expression, program)
        return
      case 'group':
        program.push({ op: 'save', slot: 2 * expression.number })
        this.#add(expression.item, program)
        program.push({ op: 'save', slot: 2 * expression.number + 1 })
        return
      case 'reference':
        this.hasReferences = true
        program.push({ op: 'reference', number: expression.number, isCaseless: expression.isCaseless })
        return
      case 'look':
        program.push({
          op: 'look',
          program: this.compile(expression.item),
          isBehind: expression.isBehind,
          isNegative: expression.isNegative,
        })
    }
  }

  /** split → option, jump to the end; split → … */
  #addChoice(options: readonly Expression[], program: Instruction[]): void {
    const jumps: number[] = []
    for (const [i, option] of options.entries()) {
      const split = program.length
      const isLast = i === options.length - 1
      if (!isLast) program.push({ op: 'end' })
      this.#add(option, program)
      if (isLast) break
      jumps.push(program.length)
      program.push({ op: 'end' })
      program[split] = { op: 'split', first: split + 1, second: program.length }
    }
    for (const jump of jumps) program[jump] = { op: 'split', first: program.length, second: program.length }
  }

  #addRepeat({ item, min, max, isLazy }: Expression & { kind: 'repeat' }, program: Instruction[]): void {
    for (let i = 0; i < min; i++) this.#add(item, program)
    const order = (inside: number, after: number) => {
      return { op: 'split' as const, first: isLazy ? after : inside, second: isLazy ? inside : after }
    }
    if (max === Number.POSITIVE_INFINITY) {
      const split = program.length
      program.push({ op: 'end' })
      this.#add(item, program)
      program.push({ op: 'split', first: split, second: split })
      program[split] = { ...order(split + 1, program.length), exit: program.length }
      return
    }
    const splits: number[] = []
    for (let i = min; i < max; i++) {
      splits.push(program.length)
      program.push({ op: 'end' })
      this.#add(item, program)
    }
    for (const split of splits) program[split] = order(split + 1, program.length)
  }
}

/**
 * Begins and ends of groups, by slot, and the last begin of each loop, by the negative of its place; only with
 * back-references.
 */
type Slots = ReadonlyMap<number, number>

interface Thread {
  pc: number
  at: number
  slots: Slots
}

/** A set of places. */
interface Places {
  /** Adds a place. Returns true if it is new. */
  add(place: number): boolean
}

class TableOfPlaces implements Places {
  readonly #bits: Uint8Array

  constructor(byteLength: number) {
    this.#bits = new Uint8Array(byteLength)
  }

  add(place: number): boolean {
    const [at, bit] = [place >> 3, 1 << (place & 7)]
    if ((this.#bits[at] & bit) !== 0) return false
    this.#bits[at] |= bit
    return true
  }
}

class SetOfPlaces implements Places {
  readonly #places = new Set<number>()

  add(place: number): boolean {
    const { size } = this.#places
    return this.#places.add(place).size > size
  }
}

/** One program on its way through a text. */
interface Search {
  readonly program: readonly Instruction[]
  readonly accepts: (end: number) => boolean
  /**
   * The ways that are left to try, the last first: their slots, and their places in program and text, which as objects
   * would cost more.
   */
  readonly slots: Slots[]
  readonly places: number[]
  /** Splits that were tried, or are being tried, by place in program and text; only without back-references. */
  readonly seen: Places
}

/** One text being matched. */
class Run {
  readonly #text: readonly number[]
  readonly #hasReferences: boolean
  readonly #total: StepCount
  #steps = 0

  constructor(text: readonly number[], hasReferences: boolean, total: StepCount) {
    this.#total = total
    this.#text = text
    this.#hasReferences = hasReferences
  }

  /** The first match from `start` whose end is accepted: where it ends, and its groups. */
  match(
    program: readonly Instruction[],
    start: number,
    accepts: (end: number) => boolean,
    slots: Slots = new Map(),
  ): Readonly<Thread> | undefined {
    const seen = this.#places(program)
    const search: Search = { program, accepts, slots: [], places: [], seen }
    const thread: Thread = { pc: 0, at: start, slots }
    for (;;) {
      if (this.#follow(thread, search)) return thread
      const next = search.slots.pop()
      if (next === undefined) return undefined
      thread.slots = next
      thread.at = search.places.pop()!
      thread.pc = search.places.pop()!
    }
  }

  #places(program: readonly Instruction[]): Places {
    const bits = program.length * (this.#text.length + 1)
    if (this.#hasReferences || bits > MAX_TABLE_BITS) return new SetOfPlaces()
    const byteLength = Math.ceil(bits / 8)
    this.#count(Math.ceil(byteLength / BYTES_PER_STEP))
    return new TableOfPlaces(byteLength)
  }

  #count(steps: number): void {
    this.#steps += steps
    this.#total.steps += steps
    if (this.#steps > (this.#hasReferences ? MAX_REFERENCE_STEPS : MAX_STEPS))
      throw new ExpressionError('it takes too long to match')
    if (this.#total.steps > MAX_TOTAL_STEPS) throw new ExpressionError('it takes too long to match so many names')
  }

  /** Runs a thread to its end, and says whether that is a match. */
  #follow(thread: Thread, search: Search): boolean {
    for (;;) {
      this.#count(1)
      const instruction = search.program[thread.pc]
      if (instruction.op === 'end') return search.accepts(thread.at)
      const goesOn =
        instruction.op === 'split' ? this.#split(instruction, thread, search) : this.#step(instruction, thread)
      if (!goesOn) return false
    }
  }

  /** Takes the first way and leaves the second for later. */
  #split({ first, second, exit }: Instruction & { op: 'split' }, thread: Thread, search: Search): boolean {
    const { pc, at } = thread
    if (!this.#hasReferences) {
      // Whatever follows from here was tried, or is being tried: a loop that takes nothing ends here too.
      if (!search.seen.add(pc * (this.#text.length + 1) + at)) return false
    } else if (exit !== undefined) {
      if (thread.slots.get(-pc) === at) {
        // A round that took nothing is the last.
        thread.pc = exit
        return true
      }
      thread.slots = new Map(thread.slots).set(-pc, at)
    }
    if (first === second) {
      thread.pc = first
      return true
    }
    const next = search.program[first]
    if (next.op === 'character' && (at === this.#text.length || !next.test(this.#text[at]))) {
      // The first way ends at once: most options of a long list do.
      thread.pc = second
      return true
    }
    search.places.push(second, at)
    search.slots.push(thread.slots)
    thread.pc = first
    return true
  }

  /** Goes past one instruction, if the text allows it. */
  #step(instruction: Exclude<Instruction, { op: 'end' | 'split' }>, thread: Thread): boolean {
    thread.pc++
    switch (instruction.op) {
      case 'save':
        if (this.#hasReferences) thread.slots = new Map(thread.slots).set(instruction.slot, thread.at)
        return true
      case 'character':
        return thread.at < this.#text.length && instruction.test(this.#text[thread.at++])
      case 'position':
        return instruction.test(this.#text, thread.at)
      case 'look': {
        const groups = this.#look(instruction, thread)
        if (!instruction.isNegative && groups !== undefined) thread.slots = new Map([...thread.slots, ...groups])
        return (groups === undefined) === instruction.isNegative
      }
      case 'reference': {
        const end = this.#repeated(instruction, thread)
        if (end !== undefined) thread.at = end
        return end !== undefined
      }
    }
  }

  /** Groups after what is ahead or behind; undefined where it is not there. */
  #look({ program, isBehind }: Instruction & { op: 'look' }, { at, slots }: Thread): Slots | undefined {
    const onlyGroups = (all: Slots) => new Map([...all].filter(([slot]) => slot > 0))
    const outer = onlyGroups(slots)
    for (let start = at; start >= (isBehind ? 0 : at); start--) {
      const found = this.match(program, start, (end) => !isBehind || end === at, outer)
      if (found !== undefined) return onlyGroups(found.slots)
    }
    return undefined
  }

  /** After the text of a group again; undefined when it is not there. */
  #repeated({ number, isCaseless }: Instruction & { op: 'reference' }, { at, slots }: Thread): number | undefined {
    const [start, end] = [slots.get(2 * number), slots.get(2 * number + 1)]
    if (start === undefined || end === undefined) return undefined
    const fold = (code: number) => (isCaseless ? String.fromCodePoint(code).toLowerCase() : code)
    for (let i = start; i < end; i++) {
      if (at + i - start >= this.#text.length || fold(this.#text[i]) !== fold(this.#text[at + i - start]))
        return undefined
    }
    return at + end - start
  }
}
