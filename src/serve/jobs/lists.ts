// Lists in OpenAI's form: pages of at most `limit` entries, which begin after the entry with the id `after`.

import { invalid } from '../http.js'

interface Listed {
  readonly id: string
  readonly metadata?: Readonly<Record<string, string>> | null
}

/** @param entries the oldest first */
export function pageOf<Entry extends Listed>(
  entries: readonly Entry[],
  { url }: Pick<Request, 'url'>,
  { most = 100, isNewestFirst = true } = {},
) {
  const query = new URL(url).searchParams
  const order = query.get('order') ?? (isNewestFirst ? 'desc' : 'asc')
  const limit = query.has('limit') ? Number(query.get('limit')) : Math.min(20, most)
  if (order !== 'asc' && order !== 'desc') throw invalid('order', 'asc or desc')
  const isCount = Number.isSafeInteger(limit) && limit >= 1 && limit <= most
  if (!isCount) throw invalid('limit', `not valid; expected an integer in [1, ${most}]`)
  const wanted = [...query].flatMap(([key, value]) => {
    const [, name] = /^metadata\[(.+)\]$/.exec(key) ?? []
    return name === undefined ? [] : [[name, value] as const]
  })
  const fits = ({ metadata }: Entry) => wanted.every(([name, value]) => metadata?.[name] === value)
  const found = wanted.length === 0 ? entries : entries.filter(fits)
  const sorted = order === 'asc' ? found : found.toReversed()
  const after = query.get('after')
  const start = after === null ? 0 : sorted.findIndex(({ id }) => id === after) + 1
  if (after !== null && start === 0) throw invalid('after', `there is no ${after} here`)
  const data = sorted.slice(start, start + limit)
  const [first_id, last_id] = [data[0]?.id ?? null, data.at(-1)?.id ?? null]
  return { object: 'list', data, first_id, last_id, has_more: sorted.length > start + limit }
}
