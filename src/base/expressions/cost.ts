// Finds out how long JavaScript's engine can take for a regular expression, without running it. The engine tries every
// way through the expression, so the time depends on the number of ways to read a text. The positions of an expression
// form a graph (Glushkov). If two loops from a position read the same characters, each round doubles the time. Without
// loops, as in (?:a|aa){24}, the ways are counted for the worst texts.

import { type CharacterTest, type Expression, ExpressionError, parseRegExp } from './parse.js'

/** The most positions of an expression. The expressions of tokenizers have some dozens. */
const MAX_POSITIONS = 1000
const MAX_LOOP = 100
/** With two loops in a row, tried from each place of the text, n characters take at most n³ steps. */
const MAX_LOOPS_IN_A_ROW = 2

/** If a text can be read in more ways than this, a longer text takes too long, because each place in it is tried. */
const MAX_WAYS = 1 << 16
/** The length of the texts for which ways are counted, and how many texts are followed at a time. */
const [TRIED_LENGTH, TRIED_TEXTS] = [64, 4]

/** Characters of every kind that the expressions of tokenizers distinguish. */
const SAMPLE = sample()

function sample(): number[] {
  const codes = Array.from({ length: 0x180 }, (_, i) => i)
  for (let code = 0x180; code < 0x3100; code += 7) codes.push(code)
  for (let code = 0x3100; code < 0xd800; code += 211) codes.push(code)
  for (let code = 0xe000; code < 0x20000; code += 307) codes.push(code)
  codes.push(0x1c5, 0x2028, 0x2029, 0x200d, 0x3000, 0xfeff, 0xfffd, 0xff11, 0x1f600, 0x10ffff)
  return codes
}

/** Returns a clause that says why an expression can take too long, or undefined if it cannot. */
export function costOfRegExp(expression: RegExp): string | undefined {
  const patternCodes = Array.from(expression.source, (character) => character.codePointAt(0)!)
  try {
    const todo: Expression[] = [parseRegExp(expression)]
    for (let node = todo.pop(); node !== undefined; node = todo.pop()) {
      const graph = new PositionGraph()
      const ends = graph.add(node)
      todo.push(...graph.looks)
      const reason = costOfGraph(graph, ends, [...SAMPLE, ...patternCodes])
      if (reason !== undefined) return reason
    }
    return undefined
  } catch (error) {
    if (error instanceof ExpressionError) return `it has ${error.message}`
    throw error
  }
}

/** The first and last positions of a part of an expression, and whether it matches the empty text. */
interface Ends {
  readonly first: readonly number[]
  readonly last: readonly number[]
  readonly isNullable: boolean
}

class PositionGraph {
  readonly tests: CharacterTest[] = []
  /** For each position, the positions that can follow, and in how many ways. */
  readonly next: Map<number, number>[] = []
  /** Positions after which a lookahead, lookbehind or anchor may fail. */
  readonly isLookedAfter = new Set<number>()
  readonly looks: Expression[] = []

  /** Adds an expression. Throws ExpressionError if its cost cannot be found out here. */
  add(node: Expression): Ends {
    switch (node.kind) {
      case 'character': {
        const at = this.tests.push(node.test) - 1
        if (at === MAX_POSITIONS) throw new ExpressionError('too large a number of characters and repeats')
        this.next.push(new Map())
        return { first: [at], last: [at], isNullable: false }
      }
      case 'look':
        this.looks.push(node.item)
        return { first: [], last: [], isNullable: true }
      case 'position':
        return { first: [], last: [], isNullable: true }
      case 'group':
        return this.add(node.item)
      case 'reference':
        throw new ExpressionError('a reference to a group')
      case 'choice': {
        const all = node.options.map((option) => this.add(option))
        return {
          first: all.flatMap(({ first }) => first),
          last: all.flatMap(({ last }) => last),
          isNullable: all.some(({ isNullable }) => isNullable),
        }
      }
      case 'sequence':
        return this.#sequence(node.items)
      case 'repeat':
        return this.#repeat(node)
    }
  }

  #sequence(items: readonly Expression[]): Ends {
    let whole: Ends = { first: [], last: [], isNullable: true }
    for (const item of items) {
      if (item.kind === 'look' || item.kind === 'position') for (const at of whole.last) this.isLookedAfter.add(at)
      whole = this.#joined(whole, this.add(item))
    }
    return whole
  }

  #joined(left: Ends, right: Ends): Ends {
    this.#link(left.last, right.first)
    return {
      first: left.isNullable ? [...left.first, ...right.first] : left.first,
      last: right.isNullable ? [...left.last, ...right.last] : right.last,
      isNullable: left.isNullable && right.isNullable,
    }
  }

  #repeat({ item, min, max }: Expression & { kind: 'repeat' }): Ends {
    const isEndless = max === Number.POSITIVE_INFINITY
    let whole: Ends = { first: [], last: [], isNullable: true }
    const required = isEndless ? Math.max(1, min) : min
    for (let i = 0; i < required; i++) {
      const ends = this.add(item)
      if (isEndless && i === required - 1) this.#link(ends.last, ends.first)
      whole = this.#joined(whole, { ...ends, isNullable: ends.isNullable || i >= min })
      // An item without characters consumes nothing, however often it is repeated.
      if (ends.first.length === 0) return whole
    }
    // An optional round always follows the previous round: only rounds at the end are left out.
    let before = whole
    for (let i = min; i < max && !isEndless; i++) {
      const ends = this.add(item)
      this.#link(before.last, ends.first)
      const first = before.isNullable ? [...whole.first, ...ends.first] : whole.first
      whole = { ...whole, first, last: [...whole.last, ...ends.last] }
      before = { ...ends, isNullable: false }
      if (ends.first.length === 0) return whole
    }
    return whole
  }

  #link(from: readonly number[], to: readonly number[]): void {
    for (const source of from)
      for (const target of to) this.next[source].set(target, (this.next[source].get(target) ?? 0) + 1)
  }
}

function costOfGraph(graph: PositionGraph, { first, last }: Ends, codes: readonly number[]): string | undefined {
  const sets = characterSets(graph.tests, codes)
  const loops = components(graph.tests.length, (at) => [...graph.next[at].keys()])
  for (const loop of loops) {
    if (loop.length > MAX_LOOP) return 'it is too large'
    if (isAmbiguous(graph, new Set(loop), sets)) return 'repeats inside of repeats can read a text in ever more ways'
  }
  const accepting = new Set(last.filter((at) => !graph.isLookedAfter.has(at)))
  if (loopsInARow(graph, loops, accepting, sets) > MAX_LOOPS_IN_A_ROW) {
    return `more than ${MAX_LOOPS_IN_A_ROW} repeats in a row can take the same characters`
  }
  return hasManyWays(graph, first, sets) ? `it can read a text in more than ${MAX_WAYS} ways` : undefined
}

function characterSets(tests: readonly CharacterTest[], codes: readonly number[]): Set<number>[] {
  const distinct = [...new Set(tests)]
  const byTest = new Map(distinct.map((test) => [test, new Set<number>()]))
  const kinds = new Set<string>()
  for (const code of codes) {
    const matching = distinct.flatMap((test, i) => (test(code) ? [i] : []))
    const kind = matching.join()
    if (matching.length === 0 || kinds.has(kind)) continue
    for (const i of matching) byTest.get(distinct[i])!.add(kinds.size)
    kinds.add(kind)
  }
  return tests.map((test) => byTest.get(test)!)
}

/** Extends the texts with the most ways so far by each kind of character, and says whether one has too many. */
function hasManyWays(graph: PositionGraph, first: readonly number[], sets: readonly Set<number>[]): boolean {
  const kinds = [...new Set(sets.flatMap((set) => [...set]))]
  const edges = graph.next.map((next) => [...next])
  type Ways = ReadonlyMap<number, number>
  const total = (ways: Ways) => [...ways.values()].reduce((sum, count) => sum + count, 0)
  const longer = (ways: Ways, kind: number): Ways => {
    const result = new Map<number, number>()
    for (const [at, count] of ways) {
      for (const [to, times] of edges[at]) if (sets[to].has(kind)) result.set(to, (result.get(to) ?? 0) + count * times)
    }
    return result
  }
  const start = (kind: number): Ways => {
    const result = new Map<number, number>()
    for (const at of first) if (sets[at].has(kind)) result.set(at, (result.get(at) ?? 0) + 1)
    return result
  }
  let texts = kinds.map(start)
  for (let length = 1; length < TRIED_LENGTH && texts.length > 0; length++) {
    const ranked = texts.map((ways) => ({ ways, count: total(ways) })).sort((a, b) => b.count - a.count)
    if (ranked[0].count > MAX_WAYS) return true
    const best = ranked.slice(0, TRIED_TEXTS)
    texts = best.flatMap(({ ways }) => kinds.map((kind) => longer(ways, kind))).filter(({ size }) => size > 0)
  }
  return false
}

function meet(a: ReadonlySet<number>, b: ReadonlySet<number>): boolean {
  for (const kind of a) if (b.has(kind)) return true
  return false
}

/** Says whether there are two ways from a position of a loop back to it that read the same characters. */
function isAmbiguous(graph: PositionGraph, loop: ReadonlySet<number>, sets: readonly Set<number>[]): boolean {
  const inside = (at: number) => [...graph.next[at]].filter(([to]) => loop.has(to))
  if ([...loop].some((at) => inside(at).some(([, ways]) => ways > 1))) return true
  // Follow pairs of positions that the same characters lead to.
  const size = graph.tests.length
  const nextPairs = (pair: number) => {
    const [left, right] = [Math.floor(pair / size), pair % size]
    const pairs: number[] = []
    for (const [a] of inside(left)) {
      for (const [b] of inside(right)) if (a === b || meet(sets[a], sets[b])) pairs.push(a * size + b)
    }
    return pairs
  }
  const starts = [...loop].map((at) => at * size + at)
  return componentsFrom(starts, nextPairs).some((pairs) => {
    const isSame = (pair: number) => Math.floor(pair / size) === pair % size
    return pairs.some(isSame) && !pairs.every(isSame)
  })
}

/** Returns the length of the longest row of loops that can all read the same kind of character and then fail. */
function loopsInARow(
  graph: PositionGraph,
  loops: readonly (readonly number[])[],
  accepting: ReadonlySet<number>,
  sets: readonly Set<number>[],
): number {
  const kinds = new Set(sets.flatMap((set) => [...set]))
  let most = 0
  for (const kind of kinds) {
    const next = (at: number) => [...graph.next[at].keys()].filter((to) => sets[to].has(kind))
    // The components come in reverse order, so those that follow a component are already known.
    const rows = new Map<number, number>()
    const all = componentsFrom(
      graph.tests.flatMap((_, at) => (sets[at].has(kind) ? [at] : [])),
      next,
    )
    for (const component of all) {
      const isLoop = loops.length > 0 && component.some((at) => next(at).some((to) => component.includes(to)))
      const after = Math.max(0, ...component.flatMap((at) => next(at).map((to) => rows.get(to) ?? 0)))
      const isLast = after === 0 && component.some((at) => accepting.has(at))
      const row = after + (isLoop && !isLast ? 1 : 0)
      for (const at of component) rows.set(at, row)
      most = Math.max(most, row)
    }
  }
  return most
}

function components(size: number, next: (at: number) => number[]): number[][] {
  const all = componentsFrom(
    Array.from({ length: size }, (_, at) => at),
    next,
  )
  return all.filter((component) => component.length > 1 || next(component[0]).includes(component[0]))
}

/** Returns the reachable strongly connected components, last first (Tarjan 1972, without recursion). */
function componentsFrom(starts: readonly number[], next: (node: number) => number[]): number[][] {
  const order = new Map<number, number>()
  const low = new Map<number, number>()
  const open: number[] = []
  const isOpen = new Set<number>()
  const result: number[][] = []
  for (const start of starts) {
    if (order.has(start)) continue
    const path: { node: number; rest: number[] }[] = []
    const enter = (node: number) => {
      order.set(node, order.size)
      low.set(node, order.get(node)!)
      open.push(node)
      isOpen.add(node)
      path.push({ node, rest: next(node) })
    }
    enter(start)
    for (let top = path.at(-1); top !== undefined; top = path.at(-1)) {
      const to = top.rest.pop()
      if (to !== undefined) {
        if (!order.has(to)) enter(to)
        else if (isOpen.has(to)) low.set(top.node, Math.min(low.get(top.node)!, order.get(to)!))
        continue
      }
      path.pop()
      const parent = path.at(-1)
      if (parent !== undefined) low.set(parent.node, Math.min(low.get(parent.node)!, low.get(top.node)!))
      if (low.get(top.node) !== order.get(top.node)) continue
      const component = open.splice(open.indexOf(top.node))
      for (const node of component) isOpen.delete(node)
      result.push(component)
    }
  }
  return result
}
