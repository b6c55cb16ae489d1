// Lists in OpenAI's form: pages of at most `limit` entries, which begin after the entry with the id `after`.

import { invalid } from '../http.js'

export interface PageOptions {
  readonly most?: number
  readonly isNewestFirst?: boolean
}

/** What a request asks of a list. */
export function askedPage({ url }: Pick<Request, 'url'>, { most = 100, isNewestFirst = true }: PageOptions) {
  const query = new URL(url).searchParams
  const order = query.get('order') ?? (isNewestFirst ? 'desc' : 'asc')
  const limit = query.has('limit') ? Number(query.get('limit')) : Math.min(20, most)
  if (order !== 'asc' && order !== 'desc') throw invalid('order', 'asc or desc')
  const isCount = Number.isSafeInteger(limit) && limit >= 1 && limit <= most
  if (!isCount) throw invalid('limit', `not valid; expected an integer in [1, ${most}]`)
  const metadata = [...query].flatMap(([key, value]): [string, string][] => {
    const [, name] = /^metadata\[(.+)\]$/.exec(key) ?? []
    return name === undefined ? [] : [[name, value]]
  })
  return { order, limit, after: query.get('after'), metadata } as const
}

/** @param entries the oldest first */
export function pageOf<Entry extends { readonly id: string }>(
  entries: readonly Entry[],
  request: Pick<Request, 'url'>,
  options: PageOptions = {},
) {
  const { order, limit, after } = askedPage(request, options)
  const sorted = order === 'asc' ? entries : entries.toReversed()
  const start = after === null ? 0 : sorted.findIndex(({ id }) => id === after) + 1
  if (after !== null && start === 0) throw invalid('after', `there is no ${after} here`)
  const data = sorted.slice(start, start + limit)
  const [first_id, last_id] = [data[0]?.id ?? null, data.at(-1)?.id ?? null]
  return { object: 'list', data, first_id, last_id, has_more: sorted.length > start + limit }
}
