// Creates, reads and writes protobuf messages by a table of their fields (gen/onnx_pb.ts). The prototype of a message
// has the default of each unset field. Fields that are missing in the table are kept as they are. The library's own way
// needs descriptors, whose code is larger than all other code for ONNX files.
// Format: https://protobuf.dev/programming-guides/encoding/

import type { Message, MessageInitShape } from '@bufbuild/protobuf'
import type { GenMessage } from '@bufbuild/protobuf/codegenv2'
import { BinaryReader, BinaryWriter, WireType } from '@bufbuild/protobuf/wire'

export interface Schema<T extends Message> {
  readonly typeName: T['$typeName']
  readonly fields: ReadonlyMap<number, Field>
  /** The defaults of unset fields. */
  readonly zeros: object
}

interface Field {
  readonly number: number
  readonly name: string
  /** The union (`oneof`) that the field belongs to. */
  readonly union: string | undefined
  readonly isList: boolean
  /** True for a list whose values are written as one block. */
  readonly isPacked: boolean
  readonly scalar: Scalar
  /** The schema of the field's message, if it is a message. */
  readonly schema: (() => AnySchema) | undefined
}

type Scalar = keyof typeof ZEROS
type AnySchema = Schema<Message>
type Values = Record<string, unknown> & { $unknown?: unknown[] }
/** The chosen field of a union (oneof), and its value. */
interface Chosen {
  readonly case: string | undefined
  readonly value?: unknown
}

const ZEROS = { string: '', bytes: new Uint8Array(0), int32: 0, float: 0, double: 0, int64: 0n, uint64: 0n }
const WIRE_TYPES: Partial<Record<Scalar, WireType>> = {
  string: WireType.LengthDelimited,
  bytes: WireType.LengthDelimited,
  float: WireType.Bit32,
  double: WireType.Bit64,
}
const MAX_DEPTH = 100

/**
 * Makes schemas from rows, which list a message's fields as `name:number type`, with * after the type of a list and **
 * of a packed list.
 */
export function readTable(rows: Readonly<Record<string, string>>): ReadonlyMap<string, AnySchema> {
  const table = new Map<string, AnySchema>()
  for (const [message, row] of Object.entries(rows)) {
    const fields = row.split(', ').map((entry): Field => {
      const [, union, name, number, type, stars] = /^(?:(\w+)\.)?(\w+):(\d+) (\w+)(\**)$/.exec(entry)!
      const isMessage = !Object.hasOwn(ZEROS, type)
      return {
        number: Number(number),
        name,
        union,
        isList: stars !== '',
        isPacked: stars === '**',
        scalar: type as Scalar,
        schema: isMessage ? () => table.get(type)! : undefined,
      }
    })
    const single = fields.filter(({ isList, union, schema }) => !isList && union === undefined && schema === undefined)
    table.set(message, {
      typeName: `onnx.${message.replaceAll('_', '.')}`,
      fields: new Map(fields.sort((a, b) => a.number - b.number).map((field) => [field.number, field])),
      zeros: Object.fromEntries(single.map(({ name, scalar }) => [name, ZEROS[scalar]])),
    })
  }
  return table
}

export function schemaOf<T extends Message>(table: ReadonlyMap<string, AnySchema>, name: string): Schema<T> {
  return table.get(name) as Schema<T>
}

/** Creates a message with the given fields. Plain objects among the values become messages too. */
export function create<T extends Message>(schema: Schema<T>, fields?: MessageInitShape<GenMessage<NoInfer<T>>>): T {
  const message = Object.create(schema.zeros) as Values
  message.$typeName = schema.typeName
  for (const { name, union, isList, schema: schemaOf } of schema.fields.values()) {
    if (union !== undefined) message[union] ??= { case: undefined }
    else if (isList) message[name] = []
    const given = (fields as Values | undefined)?.[union ?? name]
    if (given === undefined) continue
    const made = (value: unknown) =>
      schemaOf === undefined || (value as Message).$typeName !== undefined
        ? value
        : create(schemaOf(), value as MessageInitShape<GenMessage<Message>>)
    if (union === undefined)
      message[name] = isList && schemaOf !== undefined ? (given as unknown[]).map(made) : made(given)
    else if ((given as Chosen).case === name) message[union] = { case: name, value: made((given as Chosen).value) }
  }
  return message as unknown as T
}

/** Reads a message. Throws an Error for damaged bytes. */
export function fromBinary<T extends Message>(schema: Schema<T>, bytes: Uint8Array): T {
  return read(schema, create(schema), new BinaryReader(bytes), bytes.byteLength, 0)
}

function read<T extends Message>(schema: Schema<T>, message: T, reader: BinaryReader, end: number, depth: number): T {
  if (depth > MAX_DEPTH) throw new Error(`${schema.typeName} is nested too deeply`)
  const values = message as unknown as Values
  while (reader.pos < end) {
    const [number, wireType] = reader.tag()
    const field = schema.fields.get(number)
    if (field === undefined) {
      values.$unknown ??= []
      values.$unknown.push({ no: number, wireType, data: reader.skip(wireType, number) })
      continue
    }
    const { name, union, isList, scalar } = field
    if (isList) {
      const list = values[name] as unknown[]
      const isBlock =
        wireType === WireType.LengthDelimited && field.schema === undefined && WIRE_TYPES[scalar] !== wireType
      if (!isBlock) list.push(readValue(field, reader, depth))
      else for (const last = reader.uint32() + reader.pos; reader.pos < last; ) list.push(reader[scalar]())
    } else if (union === undefined) {
      values[name] = readValue(field, reader, depth, Object.hasOwn(values, name) ? values[name] : undefined)
    } else {
      const before = values[union] as Chosen
      const value = readValue(field, reader, depth, before.case === name ? before.value : undefined)
      values[union] = { case: name, value }
    }
  }
  return message
}

function readValue({ schema, scalar }: Field, reader: BinaryReader, depth: number, before?: unknown): unknown {
  if (schema === undefined) return reader[scalar]()
  const schemaOf = schema()
  const length = reader.uint32()
  return read(schemaOf, (before as Message | undefined) ?? create(schemaOf), reader, reader.pos + length, depth + 1)
}

export function toBinary<T extends Message>(schema: Schema<T>, message: T): Uint8Array {
  return write(schema, message, new BinaryWriter()).finish()
}

function write(schema: AnySchema, message: Message, writer: BinaryWriter): BinaryWriter {
  const values = message as unknown as Values
  for (const { number, name, union, isList, isPacked, scalar, schema: schemaOf } of schema.fields.values()) {
    const chosen = union === undefined ? undefined : (values[union] as Chosen)
    const list = isList ? (values[name] as unknown[]) : singleOf(values, name, chosen)
    if (list.length === 0) continue
    const put = (value: unknown) => (writer[scalar] as (value: unknown) => BinaryWriter)(value)
    if (isPacked) {
      writer.tag(number, WireType.LengthDelimited).fork()
      for (const value of list) put(value)
      writer.join()
    } else if (schemaOf === undefined) {
      for (const value of list) {
        writer.tag(number, WIRE_TYPES[scalar] ?? WireType.Varint)
        put(value)
      }
    } else {
      for (const value of list) {
        writer.tag(number, WireType.LengthDelimited).fork()
        write(schemaOf(), value as Message, writer).join()
      }
    }
  }
  for (const { no, wireType, data } of message.$unknown ?? []) writer.tag(no, wireType).raw(data)
  return writer
}

/** The values of a field as a list; empty if it is not set. */
function singleOf(values: Values, name: string, chosen: Chosen | undefined) {
  if (chosen !== undefined) return chosen.case === name ? [chosen.value] : []
  return Object.hasOwn(values, name) && values[name] !== undefined ? [values[name]] : []
}
