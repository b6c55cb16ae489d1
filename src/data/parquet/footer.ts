// The footer of a Parquet file, checked before hyparquet reads it: the bytes, and what they say of row groups and
// columns. Source: https://github.com/apache/parquet-format/blob/master/src/main/thrift/parquet.thrift

import type { ColumnMetaData, RowGroup, SchemaElement, SchemaTree } from 'hyparquet'
import type { ByteSource } from '../../base/bytes.js'
import type { ColumnKind } from './pages.js'
import { BrokenParquet, Cursor, readStruct, type ThriftStruct, type ThriftValue } from './thrift.js'

/** Length of the footer and the last four bytes. */
const TAIL_BYTES = 8
const MAX_DEPTH = 64
/** The largest number that Arrow writes has 32 bytes. */
const MAX_DECIMAL_BYTES = 64

const DECIMAL = 5
/** Fields with the smallest and the largest value of a column. */
const EXTREMES = [1, 2, 5, 6]

/** The place of a column chunk in the file, and the way to read its pages. */
export interface ColumnChunk {
  readonly offset: number
  readonly byteLength: number
  readonly codec: string
  readonly kind: Omit<ColumnKind, 'unpack'>
}

/** Throws BrokenParquet when the footer has lengths that its bytes cannot hold; FileError from the source. */
export async function checkFooter(source: ByteSource): Promise<void> {
  const { byteLength } = source
  const tail = await source.read(Math.max(0, byteLength - TAIL_BYTES), Math.min(TAIL_BYTES, byteLength))
  if (tail.byteLength < TAIL_BYTES || String.fromCharCode(...tail.subarray(4)) !== 'PAR1') {
    throw new BrokenParquet('the file does not end in PAR1')
  }
  const length = new DataView(tail.buffer, tail.byteOffset).getUint32(0, true)
  if (length > byteLength - TAIL_BYTES)
    throw new BrokenParquet(`a footer of ${length} bytes in a file of ${byteLength}`)
  const footer = await source.read(byteLength - TAIL_BYTES - length, length)
  checkDecimals(readStruct(new Cursor(footer)))
}

/** hyparquet's time for a decimal number grows with the square of its bytes. */
function checkDecimals(footer: ThriftStruct): void {
  const hasDecimals = list(footer.get(2)).some((element) => field(element, 6) === DECIMAL)
  if (!hasDecimals) return
  const columns = list(footer.get(4)).flatMap((group) => list(field(group, 1)))
  for (const column of columns) {
    const statistics = field(field(column, 3), 12)
    for (const id of EXTREMES) {
      const value = field(statistics, id)
      if (value instanceof Uint8Array && value.byteLength > MAX_DECIMAL_BYTES) {
        throw new BrokenParquet(`a decimal number of ${value.byteLength} bytes`)
      }
    }
  }
}

const list = (value: ThriftValue): readonly ThriftValue[] => (Array.isArray(value) ? value : [])
const field = (value: ThriftValue, id: number): ThriftValue => (value instanceof Map ? value.get(id) : undefined)

/** Throws BrokenParquet when columns are inside each other so often that no reader follows. */
export function checkDepth(tree: SchemaTree): void {
  let level = [tree]
  for (let depth = 0; level.length > 0; depth++) {
    if (depth > MAX_DEPTH) throw new BrokenParquet(`columns nested more than ${MAX_DEPTH} deep`)
    level = level.flatMap(({ children }) => children)
  }
}

/**
 * The chunks of the wanted columns of a row group.
 *
 * @param isWanted by the name of an outermost column
 * @throws BrokenParquet when one is outside the file or has a form that takes unbounded time
 */
export function columnChunks(
  group: RowGroup,
  tree: SchemaTree,
  isWanted: (name: string) => boolean,
  fileLength: number,
): ColumnChunk[] {
  const rows = rowCount(group)
  const wanted = group.columns.map(({ meta_data }) => {
    if (meta_data === undefined) throw new BrokenParquet('a column without its description')
    return meta_data
  })
  const chunks = wanted.filter(({ path_in_schema }) => isWanted(path_in_schema[0]))
  if (chunks.length === 0 && rows > 0) throw new BrokenParquet(`${rows} rows without columns`)
  return chunks.map((column) => columnChunk(column, tree, fileLength))
}

/** The rows of a group. Throws BrokenParquet when the footer says nonsense. */
export function rowCount(group: RowGroup): number {
  return count(group.num_rows, 'rows')
}

function columnChunk(column: ColumnMetaData, tree: SchemaTree, fileLength: number): ColumnChunk {
  const start = column.dictionary_page_offset || column.data_page_offset
  const offset = count(start, 'bytes before a column')
  const byteLength = count(column.total_compressed_size, 'bytes of a column')
  if (offset + byteLength > fileLength) {
    throw new BrokenParquet(`a column at ${offset} to ${offset + byteLength} in a file of ${fileLength} bytes`)
  }
  const path = pathTo(tree, column.path_in_schema)
  const { element } = path[path.length - 1]
  checkElements(path.map((node) => node.element))
  const inner = path.slice(1)
  const kind = {
    type: column.type,
    typeLength: element.type_length ?? 0,
    isFlat: inner.length === 1 && inner[0].children.length === 0 && element.repetition_type !== 'REPEATED',
    maxRepetition: path.filter((node) => node.element.repetition_type === 'REPEATED').length,
    maxDefinition: inner.filter((node) => node.element.repetition_type !== 'REQUIRED').length,
  }
  return { offset, byteLength, codec: column.codec, kind }
}

function checkElements(elements: readonly SchemaElement[]): void {
  const leaf = elements[elements.length - 1]
  // Parts of such a value may be named many times over.
  if (elements.some(({ logical_type }) => logical_type?.type === 'VARIANT')) {
    throw new BrokenParquet(`"${leaf.name}" belongs to a column of VARIANT values, which lowrank does not read`)
  }
  const isFixed = leaf.type === 'FIXED_LEN_BYTE_ARRAY' && (leaf.type_length ?? 0) <= MAX_DECIMAL_BYTES
  const isNumber = leaf.type === 'INT32' || leaf.type === 'INT64'
  if (leaf.converted_type === 'DECIMAL' && !isNumber && !isFixed) {
    throw new BrokenParquet(`"${leaf.name}" has decimal numbers of any length, which lowrank does not read`)
  }
}

/** The children of each node: a file can have ten thousands of columns, which are looked up in each row group. */
const byName = new WeakMap<SchemaTree, ReadonlyMap<string, SchemaTree>>()

function childrenByName(node: SchemaTree): ReadonlyMap<string, SchemaTree> {
  // The first of equal names counts.
  const names =
    byName.get(node) ?? new Map(node.children.map((child) => [child.element.name, child] as const).reverse())
  byName.set(node, names)
  return names
}

function pathTo(tree: SchemaTree, names: readonly string[]): SchemaTree[] {
  const path = [tree]
  for (const name of names) {
    const child = childrenByName(path[path.length - 1]).get(name)
    if (child === undefined) throw new BrokenParquet(`a column ${JSON.stringify(name)} that the schema does not have`)
    path.push(child)
  }
  return path
}

/** A 64-bit integer of the footer as a count. */
function count(value: unknown, what: string): number {
  if (typeof value !== 'bigint' || value < 0n || value > BigInt(Number.MAX_SAFE_INTEGER)) {
    throw new BrokenParquet(`${String(value)} ${what}`)
  }
  return Number(value)
}
