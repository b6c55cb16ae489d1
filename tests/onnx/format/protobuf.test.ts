// Compares reading and writing of ONNX's messages with the protobuf library, which uses the official descriptors.

import { readFileSync } from 'node:fs'
import { join } from 'node:path'
import { type DescMessage, fromBinary as libraryRead, toBinary as libraryWrite } from '@bufbuild/protobuf'
import fc from 'fast-check'
import { expect, it } from 'vitest'
import * as onnx from '../../../src/onnx/format/gen/onnx_pb.js'
import { create, fromBinary, type Schema, toBinary } from '../../../src/onnx/format/protobuf.js'
import { runs } from '../../thorough.js'
import { file } from './gen/onnx-descriptor.js'

const described = file.messages.flatMap((one) => [one, ...one.nestedMessages])
const model = described.find(({ name }) => name === 'ModelProto')!
const golden = (path: string) => new Uint8Array(readFileSync(join(import.meta.dirname, '../../golden', path)))

/** Bytes of a message with random fields, including unknown fields as of a later version. */
function randomBytes(message: DescMessage, depth: number): fc.Arbitrary<Uint8Array> {
  const known = message.fields.map((field) => {
    const { message: own } = field
    if (own !== undefined) {
      if (depth === 0) return fc.constant<number[]>([])
      return randomBytes(own, depth - 1).map((bytes) => [
        ...varint(field.number * 8 + 2),
        ...varint(bytes.length),
        ...bytes,
      ])
    }
    const isText = 'scalar' in field && (field.scalar === 9 || field.scalar === 12)
    if (isText) return fc.string({ maxLength: 5 }).map((text) => block(field.number, [...Buffer.from(text)]))
    const width = 'scalar' in field ? { 1: 8, 2: 4 }[field.scalar as number] : undefined
    const type = width === undefined ? 0 : width === 8 ? 1 : 5
    const number =
      width === undefined
        ? fc.bigInt({ min: 0n, max: 1n << 62n }).map((value) => varint(isEnum(field) ? value % 2n : value))
        : fc.array(fc.nat(255), { minLength: width, maxLength: width })
    const single = number.map((value) => [...varint(field.number * 8 + type), ...value])
    if (field.fieldKind !== 'list') return single
    return fc.oneof(
      single,
      fc.array(number, { maxLength: 3 }).map((all) => block(field.number, all.flat())),
    )
  })
  const unknown = fc.nat(1000).map((value) => [...varint(900 * 8), ...varint(value)])
  return fc.array(fc.oneof(...known, unknown), { maxLength: 6 }).map((parts) => Uint8Array.from(parts.flat()))
}

const isEnum = (field: DescMessage['fields'][number]) => field.fieldKind === 'enum'
const block = (number: number, bytes: number[]) => [...varint(number * 8 + 2), ...varint(bytes.length), ...bytes]

function varint(value: number | bigint): number[] {
  const bytes: number[] = []
  let rest = BigInt(value)
  for (; rest > 127n; rest >>= 7n) bytes.push(Number(rest & 127n) | 128)
  return [...bytes, Number(rest)]
}

it.each(described.map((message) => [message.typeName, message] as const))(
  '%s is read and written as the library does',
  (name, message) => {
    const schema = (onnx as unknown as Record<string, Schema<onnx.NodeProto>>)[
      `${name.replace('onnx.', '').replaceAll('.', '_')}Schema`
    ]
    fc.assert(
      fc.property(randomBytes(message, 2), (bytes) => {
        const theirs = libraryRead(message, bytes)
        const ours = fromBinary(schema, bytes)
        expect(ours).toEqual(theirs)
        const written = toBinary(schema, ours)
        expect(written).toEqual(libraryWrite(message, theirs))
        expect(fromBinary(schema, written)).toEqual(libraryRead(message, written))
      }),
      { numRuns: runs(60) },
    )
  },
)

it.each(['models/llama-optimum/onnx/model.onnx', 'models/gpt2-optimum/onnx/model.onnx'])(
  '%s has the same bytes',
  (path) => {
    const bytes = golden(path)
    const ours = fromBinary(onnx.ModelProtoSchema, bytes)
    const theirs = libraryWrite(model, libraryRead(model, bytes))
    expect(Buffer.compare(toBinary(onnx.ModelProtoSchema, ours), theirs)).toBe(0)
  },
)

it('makes messages of plain objects, with zeros for what they leave out', () => {
  const info = create(onnx.ValueInfoProtoSchema, {
    name: 'x',
    type: { value: { case: 'tensorType', value: { elemType: 1, shape: { dim: [{}] } } } },
  })
  expect(info.type?.value.value).toMatchObject({ $typeName: 'onnx.TypeProto.Tensor' })
  expect([info.docString, Object.hasOwn(info, 'docString')]).toEqual(['', false])
  expect(fromBinary(onnx.ValueInfoProtoSchema, toBinary(onnx.ValueInfoProtoSchema, info))).toEqual(info)
})

it('refuses what ends too early, and what is nested without end', () => {
  const schema = onnx.TypeProtoSchema
  expect(() => fromBinary(schema, Uint8Array.of(0x32, 200))).toThrow()
  let nested: number[] = []
  for (let i = 0; i < 300; i++) nested = block(4, block(1, nested))
  expect(() => fromBinary(schema, Uint8Array.from(nested))).toThrow(/nested/)
})
