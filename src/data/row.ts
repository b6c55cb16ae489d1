// The rows that every reader of data gives: one record as its file holds it, and its place. Its meaning is not known
// here.

/** One record, not yet checked. */
export interface Row {
  /** As parsed: an object of fields in most files. */
  readonly row: unknown
  /** File and line, row or record number, for messages. */
  readonly where: string
}

/** Records one after the other; most sources can be gone through once. */
export type Rows = AsyncIterable<Row>
