// Matches Python's regular expressions in time proportional to expression × text. It backtracks in Python's order, but
// never twice from the same place (memoized, as in Spencer's and V8's experimental engines). Back-references would need
// real backtracking, and no config has them: they are refused.

import { type CharacterTest, type Expression, ExpressionError } from './parse-expression.js'

/** Nobody writes larger expressions. `{1000}` inside `{1000}` would be one. */
const MAX_NODES = 200_000
/** The most steps for a text. A list of 1000 full names after `.*` needs less than half of them. */
const MAX_STEPS = 1 << 20
/**
 * The most steps for all texts and expressions of a config. Matching a list of 1000 full names with 1000 names needs a
 * tenth of them. They take at most two seconds.
 */
export const MAX_TOTAL_STEPS = 1 << 23

export interface StepCount {
  steps: number
}

/** A part of an expression, linked to the part that follows. */
type Node =
  | { readonly op: 'end' }
  | { readonly op: 'character'; readonly test: CharacterTest; readonly next: Node }
  | { readonly op: 'position'; readonly test: (text: readonly number[], at: number) => boolean; readonly next: Node }
  | {
      readonly op: 'look'
      readonly inside: Node
      readonly isBehind: boolean
      readonly isNegative: boolean
      readonly next: Node
    }
  | Split

/** Two ways to go on. The second is tried if the first fails. */
interface Split {
  readonly op: 'split'
  readonly id: number
  first: Node
  second: Node
}

const END: Node = { op: 'end' }

export class Matcher {
  readonly #start: Node

  constructor(
    expression: Expression,
    private readonly total: StepCount = { steps: 0 },
  ) {
    this.#start = new Compiler().compile(expression, END)
  }

  /** Does the same as Python's `re.fullmatch`. Throws ExpressionError if it takes too long. */
  test(text: string): boolean {
    return this.matchEnd(text, (end, length) => end === length) !== undefined
  }

  /**
   * Returns the end, in code points, of the first match in Python's order that begins at the start of the text and
   * whose end is accepted.
   */
  matchEnd(text: string, accepts: (end: number, length: number) => boolean): number | undefined {
    const codes = Array.from(text, (character) => character.codePointAt(0)!)
    return new Run(codes, this.total).match(this.#start, 0, (end) => accepts(end, codes.length))
  }
}

/** Turns an expression into linked nodes, from its end to its start. */
class Compiler {
  #count = 0
  #splits = 0

  compile(expression: Expression, next: Node): Node {
    if (++this.#count > MAX_NODES) throw new ExpressionError('it is too large')
    switch (expression.kind) {
      case 'character':
        return { op: 'character', test: expression.test, next }
      case 'position':
        return { op: 'position', test: expression.test, next }
      case 'sequence':
        return expression.items.reduceRight((node, item) => this.compile(item, node), next)
      case 'choice': {
        const [last, ...others] = [...expression.options].reverse()
        return others.reduce((node, option) => this.#split(this.compile(option, next), node), this.compile(last, next))
      }
      case 'repeat':
        return this.#repeat(expression, next)
      case 'look': {
        const { item, isBehind, isNegative } = expression
        return { op: 'look', inside: this.compile(item, END), isBehind, isNegative, next }
      }
    }
  }

  #repeat({ item, min, max, isLazy }: Expression & { kind: 'repeat' }, next: Node): Node {
    let node = next
    if (max === Number.POSITIVE_INFINITY) {
      const loop = this.#split(next, next)
      loop[isLazy ? 'second' : 'first'] = this.compile(item, loop)
      node = loop
    } else {
      for (let i = min; i < max; i++) {
        const inside = this.compile(item, node)
        node = isLazy ? this.#split(next, inside) : this.#split(inside, next)
      }
    }
    for (let i = 0; i < min; i++) node = this.compile(item, node)
    return node
  }

  #split(first: Node, second: Node): Split {
    return { op: 'split', id: this.#splits++, first, second }
  }
}

/** A way through the expression that is being followed, or left to try. */
interface Thread {
  node: Node
  at: number
}

class Run {
  #steps = 0

  constructor(
    private readonly text: readonly number[],
    private readonly total: StepCount,
  ) {}

  /** Returns the end of the first match that is accepted. */
  match(node: Node, at: number, accepts: (end: number) => boolean): number | undefined {
    /** Ways that are left to try. The last is tried first. */
    const left: Thread[] = [{ node, at }]
    /** Splits that were already taken, each with its place in the text. */
    const seen = new Set<number>()
    for (let thread = left.pop(); thread !== undefined; thread = left.pop()) {
      while (thread.node.op !== 'end') {
        this.#count()
        const goesOn = thread.node.op === 'split' ? this.#split(thread.node, thread, left, seen) : this.#step(thread)
        if (!goesOn) break
      }
      if (thread.node.op !== 'end') continue
      this.#count()
      if (accepts(thread.at)) return thread.at
    }
    return undefined
  }

  #count(): void {
    if (++this.#steps > MAX_STEPS) throw new ExpressionError('it takes too long to match')
    if (++this.total.steps > MAX_TOTAL_STEPS) throw new ExpressionError('it takes too long to match so many names')
  }

  /** Follows the first alternative of an expression, and keeps the second for later. */
  #split({ id, first, second }: Split, thread: Thread, left: Thread[], seen: Set<number>): boolean {
    const { at } = thread
    // Everything that follows from here was tried already. This also ends a loop whose round consumed nothing.
    const { size } = seen
    if (seen.add(id * (this.text.length + 1) + at).size === size) return false
    // In a long list of options, most fail at their first character.
    const ends = first.op === 'character' && (at === this.text.length || !first.test(this.text[at]))
    if (!ends) left.push({ node: second, at })
    thread.node = ends ? second : first
    return true
  }

  #step(thread: Thread): boolean {
    const node = thread.node as Exclude<Node, { op: 'end' | 'split' }>
    switch (node.op) {
      case 'character':
        if (thread.at === this.text.length || !node.test(this.text[thread.at])) return false
        thread.at++
        break
      case 'position':
        if (!node.test(this.text, thread.at)) return false
        break
      case 'look':
        if (this.#looks(node, thread.at) === node.isNegative) return false
    }
    thread.node = node.next
    return true
  }

  /** Says whether a lookahead or lookbehind finds its text. */
  #looks({ inside, isBehind }: Node & { op: 'look' }, at: number): boolean {
    for (let start = at; start >= (isBehind ? 0 : at); start--) {
      if (this.match(inside, start, (end) => !isBehind || end === at) !== undefined) return true
    }
    return false
  }
}
