// Matches Python's regular expressions in time that grows with expression × text, whatever both are: backtracking in Python's own
// order, but never twice from the same place (memoized, as in Spencer's and V8's experimental engines). Only back-references need
// real backtracking, within a limit.

import { type CharacterTest, type Expression, ExpressionError } from './expression-parse.js'

/** Longer programs come from no person: `{1000}` in `{1000}` does. */
const MAX_INSTRUCTIONS = 200_000
/** For one text. A list of 1000 full names after `.*` needs less than half. */
const MAX_STEPS = 1 << 20
const MAX_REFERENCE_STEPS = 1 << 17

type Instruction =
  | { readonly op: 'character'; readonly test: CharacterTest }
  | { readonly op: 'position'; readonly test: (text: readonly number[], at: number) => boolean }
  | {
      readonly op: 'split'
      readonly first: number
      readonly second: number
      /** Of a loop: what comes after it. */
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

  /** @throws ExpressionError when it does not compile */
  constructor(expression: Expression) {
    const compiler = new Compiler()
    this.#program = compiler.compile(expression)
    this.#hasReferences = compiler.hasReferences
  }

  /** As Python's `re.fullmatch`. Throws ExpressionError when it takes too long. */
  test(text: string): boolean {
    return this.matchEnd(text, (end, length) => end === length) !== undefined
  }

  /**
   * Where the first match from the text's beginning ends, of those whose end is accepted, in Python's order. Ends count code points.
   * Throws ExpressionError when it takes too long.
   */
  matchEnd(text: string, accepts: (end: number, length: number) => boolean): number | undefined {
    const codes = Array.from(text, (character) => character.codePointAt(0)!)
    return new Run(codes, this.#hasReferences).match(this.#program, 0, (end) => accepts(end, codes.length))
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

type Slots = ReadonlyMap<number, number>

interface Thread {
  readonly pc: number
  readonly at: number
  /** Where groups begin and end, and loops were last; kept only where back-references need them. */
  readonly slots: Slots
}

/** One text being matched. */
class Run {
  readonly #text: readonly number[]
  readonly #hasReferences: boolean
  #steps = 0

  constructor(text: readonly number[], hasReferences: boolean) {
    this.#text = text
    this.#hasReferences = hasReferences
  }

  match(
    program: readonly Instruction[],
    start: number,
    accepts: (end: number) => boolean,
    slots: Slots = new Map(),
  ): number | undefined {
    const width = this.#text.length + 1
    const seen = new Set<number>()
    const stack: Thread[] = [{ pc: 0, at: start, slots }]
    for (let thread = stack.pop(); thread !== undefined; thread = stack.pop()) {
      let { pc, at, slots: own } = thread
      for (;;) {
        if (++this.#steps > (this.#hasReferences ? MAX_REFERENCE_STEPS : MAX_STEPS))
          throw new ExpressionError('it takes too long to match')
        const instruction = program[pc]
        if (instruction.op === 'end') {
          if (accepts(at)) return at
          break
        }
        if (instruction.op === 'split') {
          // Whatever follows from here was tried, or is being tried: a loop that takes nothing ends here too.
          const place = pc * width + at
          if (!this.#hasReferences) {
            if (seen.has(place)) break
            seen.add(place)
          } else if (instruction.exit !== undefined) {
            // Slots of loops are negative. A round that took nothing is the last.
            if (own.get(-pc) === at) {
              pc = instruction.exit
              continue
            }
            own = new Map(own).set(-pc, at)
          }
          if (instruction.first !== instruction.second) stack.push({ pc: instruction.second, at, slots: own })
          pc = instruction.first
          continue
        }
        if (instruction.op === 'save') {
          if (this.#hasReferences) own = new Map(own).set(instruction.slot, at)
        } else if (instruction.op === 'character') {
          if (at >= this.#text.length || !instruction.test(this.#text[at])) break
          at++
        } else if (instruction.op === 'position') {
          if (!instruction.test(this.#text, at)) break
        } else if (instruction.op === 'look') {
          if (this.#look(instruction, at, own) === instruction.isNegative) break
        } else {
          const end = this.#repeated(instruction, at, own)
          if (end === undefined) break
          at = end
        }
        pc++
      }
    }
    return undefined
  }

  #look({ program, isBehind }: Instruction & { op: 'look' }, at: number, outer: Slots): boolean {
    const slots = new Map([...outer].filter(([slot]) => slot > 0))
    if (!isBehind) return this.match(program, at, () => true, slots) !== undefined
    for (let start = at; start >= 0; start--) {
      if (this.match(program, start, (end) => end === at, slots) !== undefined) return true
    }
    return false
  }

  /** After the text of a group again; undefined when it is not there. */
  #repeated({ number, isCaseless }: Instruction & { op: 'reference' }, at: number, slots: Slots): number | undefined {
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
