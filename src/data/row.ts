// The rows that every reader of data gives.

import { DataError } from '../base/errors.js'

export interface Row {
  readonly row: unknown
  readonly where: string
}

export type OnInvalid = (error: DataError) => void

export function unlessInvalid<T>(read: () => T, onInvalid: OnInvalid | undefined): T | undefined {
  try {
    return read()
  } catch (error) {
    if (onInvalid === undefined || !(error instanceof DataError)) throw error
    onInvalid(error)
    return undefined
  }
}

export type Rows = AsyncIterable<Row>
