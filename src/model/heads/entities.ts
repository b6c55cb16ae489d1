// Entities in tags such as B-PER, I-PER and O, and metrics of how well they are found, as in seqeval:
// https://github.com/chakki-works/seqeval

export interface TaggedRange {
  readonly type: string
  readonly start: number
  readonly end: number
}

function partsOf(tag: string): { prefix: string; type: string } {
  if (tag === 'O') return { prefix: 'O', type: '' }
  const match = /^([BIES])-(.*)$/s.exec(tag)
  return match === null ? { prefix: 'I', type: tag } : { prefix: match[1], type: match[2] }
}

export function isEntityTag(tag: string): boolean {
  return /^[BIES]-./s.test(tag)
}

/** Accepts tags out of order, such as an I- after O, like conlleval and seqeval. */
export function entitiesOf(tags: readonly string[]): TaggedRange[] {
  const found: TaggedRange[] = []
  let before = partsOf('O')
  let start = 0
  for (let i = 0; i <= tags.length; i++) {
    const tag = partsOf(tags[i] ?? 'O')
    const isOther = tag.type !== before.type
    const ended = before.prefix === 'E' || before.prefix === 'S'
    const begins = tag.prefix === 'B' || tag.prefix === 'S'
    if (before.prefix !== 'O' && (ended || begins || isOther || tag.prefix === 'O')) {
      found.push({ type: before.type, start, end: i })
    }
    if (tag.prefix !== 'O' && (ended || begins || isOther || before.prefix === 'O')) start = i
    before = tag
  }
  return found
}

/** Computes precision, recall and F1 over all entities, and the F1 of each type. */
export function entityMetrics(truth: readonly (readonly string[])[], predicted: readonly (readonly string[])[]) {
  const counts = new Map<string, { there: number; told: number; hits: number }>()
  const of = (type: string) => {
    const entry = counts.get(type) ?? { there: 0, told: 0, hits: 0 }
    counts.set(type, entry)
    return entry
  }
  let [right, all] = [0, 0]
  truth.forEach((tags, row) => {
    const others = predicted[row]
    all += tags.length
    for (const [i, tag] of tags.entries()) if (tag === others[i]) right++
    const keyOf = ({ type, start, end }: TaggedRange) => `${start} ${end} ${type}`
    const told = entitiesOf(others)
    const keys = new Set(told.map(keyOf))
    for (const { type } of told) of(type).told++
    for (const entity of entitiesOf(tags)) {
      of(entity.type).there++
      if (keys.has(keyOf(entity))) of(entity.type).hits++
    }
  })
  const sum = { there: 0, told: 0, hits: 0 }
  for (const { there, told, hits } of counts.values()) {
    sum.there += there
    sum.told += told
    sum.hits += hits
  }
  const types = [...counts].sort(([a], [b]) => (a < b ? -1 : 1)).map(([type, count]) => [type, f1Of(count)] as const)
  return {
    precision: ratio(sum.hits, sum.told),
    recall: ratio(sum.hits, sum.there),
    f1: f1Of(sum),
    accuracy: ratio(right, all),
    types: Object.fromEntries(types),
  }
}

function f1Of({ there, told, hits }: { there: number; told: number; hits: number }): number {
  return ratio(2 * hits, there + told)
}

/** Returns 0 for 0 / 0, as seqeval. */
function ratio(part: number, whole: number): number {
  return whole === 0 ? 0 : part / whole
}
