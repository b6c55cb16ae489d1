// What is to fetch, as data: from a provider's table of routes and the items that are known so far. Carrying it out
// makes more items known, so a plan is made again until nothing is left to fetch.

import { type Item, type Job, type Provider, type Route, textOr } from './provider.js'

export type Fetch =
  | { readonly kind: 'list'; readonly route: Route; readonly path: string; readonly to: string }
  | {
      readonly kind: 'file'
      readonly path: string
      readonly to: string
      /** As the provider's list of files has it. */
      readonly bytes: number | undefined
      readonly name: string
      readonly purpose: string
    }

export interface Known {
  /** The items of each file of a list, by its place in the folder. */
  readonly lists: ReadonlyMap<string, readonly Item[]>
  /** Places in the folder that are whole, and need not be fetched again. */
  readonly whole: ReadonlySet<string>
  /** Places that this run has tried. */
  readonly tried: ReadonlySet<string>
}

/** The place of a list: one file, or one file for each item that has such a list. */
export const placeOf = ({ name, of }: Route, parents: readonly string[] = []) =>
  of === undefined ? `lists/${name}.jsonl` : `lists/${name}/${parents.map(safeName).join('.')}.jsonl`

export function planExport(provider: Provider, { lists, whole, tried }: Known): Fetch[] {
  const planned = [
    ...provider.routes.flatMap((route) => listsOf(route, provider, lists, whole)),
    ...filesIn(provider, lists),
  ]
  const isLeft = ({ to, kind }: Fetch) => !tried.has(to) && !(kind === 'file' && whole.has(to))
  return planned.filter(isLeft)
}

function listsOf(route: Route, provider: Provider, lists: Known['lists'], whole: Known['whole']): Fetch[] {
  const { of, path, isFinal } = route
  if (of === undefined) return [{ kind: 'list', route, path, to: placeOf(route) }]
  return itemsOf(provider, of, lists).flatMap(({ ids, item }): Fetch[] => {
    const to = placeOf(route, ids)
    if (whole.has(to) && isFinal?.(item)) return []
    const [id, above = ''] = ids.toReversed().map(encodeURIComponent)
    return [{ kind: 'list', route, path: path.replace('{id}', id).replace('{of}', above), to }]
  })
}

/** All items of a list, each with its id and those of the items above it, the outermost first. */
export function itemsOf(
  provider: Provider,
  name: string,
  lists: Known['lists'],
): { readonly ids: readonly string[]; readonly item: Item }[] {
  const route = provider.routes.find((known) => known.name === name)
  if (route === undefined) return []
  const parents = route.of === undefined ? [[]] : itemsOf(provider, route.of, lists).map(({ ids }) => ids)
  return parents.flatMap((ids) =>
    (lists.get(placeOf(route, ids)) ?? []).flatMap((item) =>
      item.id === undefined ? [] : [{ ids: [...ids, item.id], item }],
    ),
  )
}

function filesIn(provider: Provider, lists: Known['lists']): Fetch[] {
  const listed = new Map(itemsOf(provider, provider.files, lists).map(({ item }) => [item.id!, item]))
  const named = Object.entries(provider.filesOf).flatMap(([name, fields]) =>
    itemsOf(provider, name, lists).flatMap(({ item }) => fields.flatMap((field) => [item[field] ?? []].flat())),
  )
  const ids = new Set([...listed.keys(), ...named.filter((id): id is string => typeof id === 'string' && id !== '')])
  const files = [...ids].map((id): Fetch => {
    const { filename, bytes, purpose } = listed.get(id) ?? {}
    const name = typeof filename === 'string' ? filename : id
    return {
      ...{ kind: 'file', path: provider.contentOf(id), name, purpose: String(purpose ?? 'named by a job or a batch') },
      to: `files/${safeName(id)}${extensionOf(name)}`,
      // Together does not count the bytes of each file.
      bytes: typeof bytes === 'number' && bytes > 0 ? bytes : undefined,
    }
  })
  const weights = itemsOf(provider, provider.jobs, lists).flatMap(({ item }): Fetch[] => {
    const path = provider.weightsOf?.(item)
    if (path === undefined) return []
    const to = `${weightsOf(item.id!)}.tar.zst`
    return [{ kind: 'file', path, to, bytes: undefined, name: item.id!, purpose: 'trained weights' }]
  })
  return [...files, ...weights]
}

/** The jobs that made a model, each with the last day of it, or of the model that was trained. */
export function jobsIn(provider: Provider, lists: Known['lists']): { readonly job: Job; readonly end?: string }[] {
  const ends = new Map(itemsOf(provider, 'models', lists).map(({ item }) => [item.id, textOr(item.shutdown_date)]))
  return itemsOf(provider, provider.jobs, lists)
    .flatMap(({ item }) => provider.jobOf(item) ?? [])
    .map((job) => ({ job, end: ends.get(job.model) ?? ends.get(job.base) }))
}

/** The place of a job's own adapter, for providers that give it away. */
export const weightsOf = (job: string) => `weights/${safeName(job)}`

/** Ids come from outside and become names of files. */
export const safeName = (id: string) => id.replaceAll(/[^\w.-]/g, '_').replace(/^\.+/, '_')

const extensionOf = (name: string) => /\.\w{1,8}$/.exec(name)?.[0] ?? '.jsonl'
