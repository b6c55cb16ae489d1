// Which pairs of questions and documents are held out to choose a run's weights, if the caller gives no records for it.
// It depends on the texts alone: mining holds out the same questions as the training that follows.

import { counted } from '../../core/base/errors.js'
import { Random } from '../../core/base/random.js'
import type { Examples } from '../tasks/task.js'

/** A question, its document, and documents that are wrong. */
export type Pair = readonly string[]

const SHARE = 0.15
const LEAST = 30
/** With fewer pairs, so few could be held out that they tell nothing. */
const LEAST_PAIRS = 100

/** Holds out 15 % of the pairs, at least 30. Pairs that share a question or a document stay together. */
export class PairsToHoldOut {
  /** Hashes of the texts of each pair. */
  readonly #pairs: number[][] = []

  add([query, ...documents]: Pair): void {
    this.#pairs.push([hashOf(`query ${query}`), ...documents.map((text) => hashOf(`document ${text}`))])
  }

  get length(): number {
    return this.#pairs.length
  }

  /** `leftOut`: pairs that would push away documents of questions that are held out. They are not trained on. */
  choose(): { readonly heldOut: ReadonlySet<number>; readonly leftOut: ReadonlySet<number> } {
    const wanted = this.length < LEAST_PAIRS ? 0 : Math.max(LEAST, Math.ceil(SHARE * this.length))
    const heldOut = new Set<number>()
    for (const [, places] of [...this.#groups()].sort(([a], [b]) => a - b)) {
      if (heldOut.size + places.length <= wanted) for (const place of places) heldOut.add(place)
    }
    const documents = new Set([...heldOut].map((place) => this.#pairs[place][1]))
    const pushesAway = ([, , ...wrong]: number[]) => wrong.some((text) => documents.has(text))
    const leftOut = [...this.#pairs.keys()].filter((place) => !heldOut.has(place) && pushesAway(this.#pairs[place]))
    return { heldOut, leftOut: new Set(leftOut) }
  }

  /** The places of pairs that belong together, by the lowest hash of their texts. */
  #groups(): Map<number, number[]> {
    const above = new Map<number, number>()
    const lowest = (text: number): number => {
      let root = text
      while (above.get(root) !== undefined) root = above.get(root)!
      while (text !== root) {
        const next = above.get(text)!
        above.set(text, root)
        text = next
      }
      return root
    }
    for (const [query, document] of this.#pairs) {
      const [a, b] = [lowest(query), lowest(document)].sort((a, b) => a - b)
      if (a !== b) above.set(b, a)
    }
    const groups = new Map<number, number[]>()
    for (const [place, [query]] of this.#pairs.entries()) {
      const group = lowest(query)
      groups.set(group, [...(groups.get(group) ?? []), place])
    }
    return groups
  }
}

/** A number with 53 bits, drawn by the text. */
const hashOf = (text: string) => new Random(0, text).uniform()

/** Divides examples, one for each pair, and tells of it. */
export function holdOut<Example>(examples: Examples<Example>, pairs: PairsToHoldOut) {
  const { heldOut, leftOut } = pairs.choose()
  const some = (takes: (place: number) => boolean) => someOf(examples, [...Array(examples.length).keys()].filter(takes))
  const all = counted(pairs.length, 'pair')
  const left = leftOut.size === 0 ? '' : `; ${leftOut.size} more are left out, because they push their documents away`
  return {
    trained: some((place) => !heldOut.has(place) && !leftOut.has(place)),
    evaluated: some((place) => heldOut.has(place)),
    note: heldOut.size === 0 ? undefined : `${heldOut.size} of ${all} are held out to choose the weights${left}`,
    doubt:
      heldOut.size > 0
        ? undefined
        : `${all} are too few to hold some out, so this run cannot tell whether it found a better adapter: give \`evalData\`, or at least ${LEAST_PAIRS} pairs`,
  }
}

/** Some of the examples, in the order of the places. */
function someOf<Example>(all: Examples<Example>, places: readonly number[]): Examples<Example> {
  return {
    length: places.length,
    at: (index) => all.at(places[index]),
    *[Symbol.iterator]() {
      for (const place of places) yield all.at(place) as Example
    },
  }
}
