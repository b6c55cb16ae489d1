// The store of a server: rows in a database, and bytes in a folder. What all of its tables share is here.

import { HttpError } from '../http.js'
import type { Caller } from '../keys.js'
import type { LabelKind, Rows, Tables } from './tables.js'

export interface Store {
  /** The folder of the bytes. */
  readonly folder: string
  /** Reads what is committed. */
  readonly rows: Rows
  /**
   * Makes changes in one transaction, and resolves when they are on the disk. Other changes wait meanwhile, so `work`
   * waits for nothing but rows.
   *
   * @throws HttpError with status 507 if the disk is full, and 503 if the database is damaged
   */
  write<T>(work: (rows: Rows) => Promise<T>): Promise<T>
  /** Every route that needs the store says from now on why it cannot be used. */
  stop(damage: string): void
  close(): Promise<void>
}

/** The code of errors that say that the database is damaged. */
export const UNUSABLE = 'store_unusable'

export function isUnusable(error: unknown): boolean {
  return error instanceof HttpError && error.code === UNUSABLE
}

export function mayUse({ owner }: { readonly owner: string }, { name, isAdmin }: Caller): boolean {
  return isAdmin || owner === name
}

/** @throws HttpError if the row is not there, or not the caller's */
export function requireRow<Row extends { readonly owner: string }>(
  row: Row | undefined,
  caller: Caller,
  noun: string,
  id: string,
  param = 'id',
  status = 404,
): Row {
  if (row !== undefined && mayUse(row, caller)) return row
  throw new HttpError(status, `There is no ${noun} ${id.slice(0, 100)}`, { param, code: 'not_found' })
}

/** Says by what lists find a row. Its earlier labels go. */
export async function setLabels(
  rows: Rows,
  kind: LabelKind,
  { seq, owner }: { readonly seq: number; readonly owner: string },
  metadata: Readonly<Record<string, string>> | null,
  model?: string,
): Promise<void> {
  await removeLabels(rows, kind, [seq])
  const named = Object.entries(metadata ?? {}).map(([name, value]) => [`metadata.${name}`, value])
  const all = model === undefined ? named : [['model', model], ...named]
  if (all.length === 0) return
  const labels = all.map(([name, value]) => ({ kind, seq, owner, name, value }))
  await rows.insertInto('labels').values(labels).execute()
}

export async function removeLabels(rows: Rows, kind: LabelKind, seqs: readonly number[]): Promise<void> {
  await rows.deleteFrom('labels').where('kind', '=', kind).where('seq', 'in', seqs).execute()
}

type SumKind = Tables['sums']['kind']

/** What an owner has. */
export async function sumOf(rows: Rows, owner: string, kind: SumKind) {
  const found = await rows.selectFrom('sums').selectAll().where('owner', '=', owner).where('kind', '=', kind).execute()
  const [{ count, bytes } = { count: 0, bytes: 0 }] = found
  return { count, bytes }
}

export async function addToSum(rows: Rows, owner: string, kind: SumKind, count: number, bytes: number): Promise<void> {
  await rows
    .insertInto('sums')
    .values({ owner, kind, count, bytes })
    .onConflict((conflict) =>
      conflict.columns(['owner', 'kind']).doUpdateSet(({ eb }) => ({
        count: eb('sums.count', '+', count),
        bytes: eb('sums.bytes', '+', bytes),
      })),
    )
    .execute()
}
