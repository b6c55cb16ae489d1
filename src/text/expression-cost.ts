// How long JavaScript's engine can take for a regular expression, found without running it. The engine tries one way through the
// expression after the other. So what counts is in how many ways a text can be read: the positions of an expression (Glushkov) are a
// graph, and two ways around from one position by the same characters mean that every further round doubles the time.

import { type Node, parseRegExp } from './expression-parse.js'

/** Positions of one expression; those of tokenizers have some dozens. */
const MAX_POSITIONS = 1000
/** Positions that are on loops with one another. */
const MAX_LOOP = 100
/** A text of n characters then takes n³ steps at most: two loops one after the other, from each place of the text. */
const MAX_LOOPS_IN_A_ROW = 2

/** Characters of all kinds that expressions of tokenizers tell apart. */
const SAMPLE = sample()

function sample(): string[] {
  const codes = Array.from({ length: 0x180 }, (_, i) => i)
  for (let code = 0x180; code < 0x3100; code += 7) codes.push(code)
  for (let code = 0x3100; code < 0xd800; code += 211) codes.push(code)
  for (let code = 0xe000; code < 0x20000; code += 307) codes.push(code)
  codes.push(0x1c5, 0x2028, 0x2029, 0x200d, 0x3000, 0xfeff, 0xfffd, 0xff11, 0x1f600, 0x10ffff)
  return codes.map((code) => String.fromCodePoint(code))
}

/** Why an expression can take too long, in a clause; undefined where it cannot. */
export function costOfRegExp(expression: RegExp): string | undefined {
  const tree = parseRegExp(expression)
  if (tree === undefined) return 'it refers to its own groups, or is nested too deep'
  const todo: Node[] = [tree]
  const matchers = new Map<string, RegExp>()
  for (let node = todo.pop(); node !== undefined; node = todo.pop()) {
    const graph = new PositionGraph()
    const last = graph.add(node)?.last
    if (last === undefined) return 'it is too large'
    todo.push(...graph.assertions)
    const reason = costOfGraph(graph, last, expression.flags, matchers)
    if (reason !== undefined) return reason
  }
  return undefined
}

/** First and last positions of a part; `isNullable`: it matches the empty text. */
interface Ends {
  readonly first: readonly number[]
  readonly last: readonly number[]
  readonly isNullable: boolean
}

class PositionGraph {
  /** The expression of each position's character. */
  readonly sources: string[] = []
  /** From each position: the next ones, and in how many ways. */
  readonly next: Map<number, number>[] = []
  /** Positions after which a look around may fail. */
  readonly isLookedAfter = new Set<number>()
  /** What is looked for: expressions of their own. */
  readonly assertions: Node[] = []

  /** Undefined when there are too many positions. */
  add(node: Node): Ends | undefined {
    switch (node.kind) {
      case 'character': {
        const at = this.sources.push(node.source) - 1
        this.next.push(new Map())
        return at < MAX_POSITIONS ? { first: [at], last: [at], isNullable: false } : undefined
      }
      case 'assertion':
        if (node.item !== undefined) this.assertions.push(node.item)
        return { first: [], last: [], isNullable: true }
      case 'choice': {
        const all: Ends[] = []
        for (const option of node.options) {
          const ends = this.add(option)
          if (ends === undefined) return undefined
          all.push(ends)
        }
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

  #sequence(items: readonly Node[]): Ends | undefined {
    let whole: Ends = { first: [], last: [], isNullable: true }
    for (const item of items) {
      if (item.kind === 'assertion') for (const at of whole.last) this.isLookedAfter.add(at)
      const ends = this.add(item)
      if (ends === undefined) return undefined
      whole = this.#joined(whole, ends)
    }
    return whole
  }

  #joined(one: Ends, other: Ends): Ends {
    this.#link(one.last, other.first)
    return {
      first: one.isNullable ? [...one.first, ...other.first] : one.first,
      last: other.isNullable ? [...one.last, ...other.last] : other.last,
      isNullable: one.isNullable && other.isNullable,
    }
  }

  #repeat({ item, min, max }: Node & { kind: 'repeat' }): Ends | undefined {
    const isEndless = max === Number.POSITIVE_INFINITY
    let whole: Ends = { first: [], last: [], isNullable: true }
    const copies = isEndless ? Math.max(1, min) : max
    for (let i = 0; i < copies; i++) {
      const ends = this.add(item)
      if (ends === undefined) return undefined
      if (isEndless && i === copies - 1) this.#link(ends.last, ends.first)
      whole = this.#joined(whole, { ...ends, isNullable: ends.isNullable || i >= min })
      // What takes nothing takes nothing many times.
      if (ends.first.length === 0) break
    }
    return whole
  }

  #link(from: readonly number[], to: readonly number[]): void {
    for (const one of from) for (const other of to) this.next[one].set(other, (this.next[one].get(other) ?? 0) + 1)
  }
}

function costOfGraph(
  graph: PositionGraph,
  last: readonly number[],
  flags: string,
  matchers: Map<string, RegExp>,
): string | undefined {
  const sets = characterSets(graph.sources, flags, matchers)
  const loops = components(graph.sources.length, (at) => [...graph.next[at].keys()])
  for (const loop of loops) {
    if (loop.length > MAX_LOOP) return 'it is too large'
    if (isAmbiguous(graph, new Set(loop), sets)) return 'repeats inside of repeats can read a text in ever more ways'
  }
  const accepting = new Set(last.filter((at) => !graph.isLookedAfter.has(at)))
  if (loopsInARow(graph, loops, accepting, sets) > MAX_LOOPS_IN_A_ROW) {
    return `more than ${MAX_LOOPS_IN_A_ROW} repeats in a row can take the same characters`
  }
  return undefined
}

/** For each position the kinds of characters that it matches. Characters that no position tells apart are one kind. */
function characterSets(sources: readonly string[], flags: string, matchers: Map<string, RegExp>): Set<string>[] {
  const distinct = [...new Set(sources)]
  for (const source of distinct) {
    if (!matchers.has(source)) matchers.set(source, new RegExp(`^(?:${source})$`, flags.replace(/[gy]/g, '')))
  }
  const own = distinct.flatMap((source) => [...source])
  const bySource = new Map(distinct.map((source) => [source, new Set<string>()]))
  const kinds = new Set<string>()
  for (const character of [...SAMPLE, ...own]) {
    const matching = distinct.filter((source) => matchers.get(source)!.test(character))
    const kind = matching.join('\0')
    if (matching.length === 0 || kinds.has(kind)) continue
    kinds.add(kind)
    for (const source of matching) bySource.get(source)!.add(kind)
  }
  return sources.map((source) => bySource.get(source)!)
}

function meet(one: ReadonlySet<string>, other: ReadonlySet<string>): boolean {
  for (const kind of one) if (other.has(kind)) return true
  return false
}

/** Whether there are two ways from a position of a loop back to it by the same characters. */
function isAmbiguous(graph: PositionGraph, loop: ReadonlySet<number>, sets: readonly Set<string>[]): boolean {
  const inside = (at: number) => [...graph.next[at]].filter(([to]) => loop.has(to))
  if ([...loop].some((at) => inside(at).some(([, ways]) => ways > 1))) return true
  // Pairs of positions that the same characters lead to.
  const size = graph.sources.length
  const nextPairs = (pair: number) => {
    const [one, other] = [Math.floor(pair / size), pair % size]
    const pairs: number[] = []
    for (const [a] of inside(one)) {
      for (const [b] of inside(other)) if (a === b || meet(sets[a], sets[b])) pairs.push(a * size + b)
    }
    return pairs
  }
  const starts = [...loop].map((at) => at * size + at)
  return componentsFrom(starts, nextPairs).some((pairs) => {
    const isSame = (pair: number) => Math.floor(pair / size) === pair % size
    return pairs.some(isSame) && !pairs.every(isSame)
  })
}

/** The longest row of loops that can share one kind of characters and then fail. */
function loopsInARow(
  graph: PositionGraph,
  loops: readonly (readonly number[])[],
  accepting: ReadonlySet<number>,
  sets: readonly Set<string>[],
): number {
  const kinds = new Set(sets.flatMap((set) => [...set]))
  let most = 0
  for (const kind of kinds) {
    const next = (at: number) => [...graph.next[at].keys()].filter((to) => sets[to].has(kind))
    // Components come with the last ones first.
    const rows = new Map<number, number>()
    const all = componentsFrom(
      graph.sources.flatMap((_, at) => (sets[at].has(kind) ? [at] : [])),
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

/** Those components that are loops. */
function components(size: number, next: (at: number) => number[]): number[][] {
  const all = componentsFrom(
    Array.from({ length: size }, (_, at) => at),
    next,
  )
  return all.filter((component) => component.length > 1 || next(component[0]).includes(component[0]))
}

/** Strongly connected components that can be reached, the last ones first (Tarjan 1972, without recursion). */
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
