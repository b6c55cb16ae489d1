// Pages of rows: they begin after a row's place, so the last page costs no more than the first.

import { type SelectQueryBuilder, sql } from 'kysely'
import { invalid } from '../http.js'
import { askedPage, type PageOptions } from '../jobs/lists.js'
import type { Caller } from '../keys.js'
import type { Store } from './store.js'
import type { LabelKind, Tables } from './tables.js'

/** How far rows with a label are counted, to begin with the rarest. */
const MOST_COUNTED = 2000

interface Listed {
  readonly seq: number
  readonly id: string
}

interface PageRequest<Row> extends PageOptions {
  readonly request: Pick<Request, 'url'>
  /** All rows that the caller may see. */
  readonly from: SelectQueryBuilder<Tables, 'files' | 'jobs' | 'chats' | 'events', Row>
  /** Rows before this place are too old. */
  readonly first?: number | undefined
  /** If rows of this kind can be filtered by labels. */
  readonly labels?: { readonly kind: LabelKind; readonly caller: Caller; readonly model?: string | null } | undefined
}

/** A list in OpenAI's form. */
export async function pageOfRows<Row extends Listed>(
  store: Store,
  { request, from, first = 0, labels, ...options }: PageRequest<Row>,
  wire: (row: Row) => object,
) {
  const { order, limit, after, metadata } = askedPage(request, options)
  const query = from as unknown as SelectQueryBuilder<Tables, 'chats', Row>
  let start: number | undefined
  if (after !== null) {
    const [found] = await query.where('id', '=', after).execute()
    if (found === undefined) throw invalid('after', `there is no ${after} here`)
    start = found.seq
  }
  // One lower bound: SQLite would begin at the first of two.
  const lowest = order === 'asc' && start !== undefined ? Math.max(first, start + 1) : first
  const highest = order === 'desc' && start !== undefined ? start - 1 : Number.MAX_SAFE_INTEGER
  const bounds = { order, lowest, highest, limit: limit + 1 }
  const wanted: [string, string][] = metadata.map(([name, value]) => [`metadata.${name}`, value])
  if (labels?.model != null) wanted.push(['model', labels.model])
  let page = query.orderBy('seq', order)
  let hasMore: boolean | undefined
  if (wanted.length === 0) {
    page = page.where('seq', '>=', lowest).where('seq', '<=', highest).limit(bounds.limit)
  } else {
    const seqs = labels === undefined ? [] : await labelled(store, labels.kind, labels.caller, wanted, bounds)
    hasMore = seqs.length > limit
    page = page.where('seq', 'in', seqs.slice(0, limit))
  }
  const rows = await page.execute()
  const data = rows.slice(0, limit).map(wire)
  const [first_id, last_id] = [rows[0]?.id ?? null, rows.slice(0, limit).at(-1)?.id ?? null]
  return { object: 'list', data, first_id, last_id, has_more: hasMore ?? rows.length > limit }
}

interface Bounds {
  readonly order: 'asc' | 'desc'
  readonly lowest: number
  readonly highest: number
  readonly limit: number
}

/** The places of rows that have all of these labels. */
async function labelled(
  { rows }: Store,
  kind: LabelKind,
  { name: owner, isAdmin }: Caller,
  wanted: readonly (readonly [name: string, value: string])[],
  { order, lowest, highest, limit }: Bounds,
): Promise<number[]> {
  const having = ([name, value]: readonly [string, string]) => {
    const own = isAdmin ? sql`` : sql`and a.owner = ${owner}`
    return sql`a.kind = ${kind} ${own} and a.name = ${name} and a.value = ${value} and a.seq >= ${lowest} and a.seq <= ${highest}`
  }
  const counted = []
  for (const label of wanted) {
    const some = sql`select 1 from labels a where ${having(label)} limit ${sql.lit(MOST_COUNTED)}`
    const { rows: found } = await sql<{ n: number }>`select count(*) as n from (${some}) as some`.execute(rows)
    counted.push({ label, count: found[0].n })
  }
  const [rarest, ...others] = counted.sort((a, b) => a.count - b.count).map(({ label }) => label)
  // A cross join keeps SQLite's order: each row of the rarest label is looked up among the others.
  const joins = others.map((_, i) => sql` cross join labels ${sql.ref(`l${i}`)}`)
  const conditions = others.map(([name, value], i) => {
    const column = (which: string) => sql.ref(`l${i}.${which}`)
    return sql` and ${column('kind')} = ${kind} and ${column('seq')} = a.seq and ${column('name')} = ${name} and ${column('value')} = ${value}`
  })
  const { rows: found } = await sql<{ seq: number }>`select a.seq from labels a${sql.join(joins, sql``)}
    where ${having(rarest)}${sql.join(conditions, sql``)} order by a.seq ${sql.raw(order)} limit ${limit}`.execute(rows)
  return found.map(({ seq }) => seq)
}
