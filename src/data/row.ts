// The rows that every reader of data gives: one record as its file holds it, and its place. Its meaning is not known
// here.

import { DataError } from '../base/errors.js'

/** One record, not yet checked. */
export interface Row {
  /** As parsed: an object of fields in most files. */
  readonly row: unknown
  /** File and line, row or record number, for messages. */
  readonly where: string
}

/** Takes an error of one record, which is then passed over. Without it, the error is thrown. */
export type OnInvalid = (error: DataError) => void

/** The result of `read`; undefined where its error was taken. */
export function unlessInvalid<T>(read: () => T, onInvalid: OnInvalid | undefined): T | undefined {
  try {
    return read()
  } catch (error) {
    if (onInvalid === undefined || !(error instanceof DataError)) throw error
    onInvalid(error)
    return undefined
  }
}

/** Records one after the other; most sources can be gone through once. */
export type Rows = AsyncIterable<Row>
