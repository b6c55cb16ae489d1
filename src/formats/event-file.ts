// Event files of TensorBoard: TFRecords, each an Event of its protobuf. Formats:
// https://www.tensorflow.org/tutorials/load_data/tfrecord, and event.proto and summary.proto of
// tensorboard/compat/proto.

import { concatBytes } from '../base/bytes.js'

/** The content of an event. */
export interface LoggedEvent {
  /** Seconds since 1970. */
  readonly time: number
  readonly step: number
  /** Numbers by name, as in train/loss. */
  readonly values: Readonly<Record<string, number>>
}

/** The first record of a file. */
export function fileHeader(time: number): Uint8Array {
  return record(event({ time, step: 0 }, text(FILE_VERSION, 'brain.Event:2')))
}

/** Numbers of one step. */
export function eventRecord({ time, step, values }: LoggedEvent): Uint8Array {
  const entries = Object.entries(values).map(([name, value]) => {
    return nested(SUMMARY_VALUE, concatBytes([text(TAG, name), float(SIMPLE_VALUE, value)]))
  })
  return record(event({ time, step }, nested(SUMMARY, concatBytes(entries))))
}

/** Says that a run goes on: events of this step or later ones in older files of the folder do not count any more. */
export function restartRecord(time: number, step: number): Uint8Array {
  return record(event({ time, step }, nested(SESSION_LOG, varint(STATUS, 1))))
}

/** Numbers of fields. */
const [WALL_TIME, STEP, FILE_VERSION, SUMMARY, SESSION_LOG] = [1, 2, 3, 5, 7]
const SUMMARY_VALUE = 1
const [TAG, SIMPLE_VALUE] = [1, 2]
const STATUS = 1

function event({ time, step }: { time: number; step: number }, what: Uint8Array): Uint8Array {
  const seconds = new DataView(new ArrayBuffer(9))
  seconds.setUint8(0, (WALL_TIME << 3) | 1)
  seconds.setFloat64(1, time, true)
  return concatBytes([new Uint8Array(seconds.buffer), ...(step === 0 ? [] : [varint(STEP, step)]), what])
}

function float(field: number, value: number): Uint8Array {
  const bytes = new DataView(new ArrayBuffer(5))
  bytes.setUint8(0, (field << 3) | 5)
  bytes.setFloat32(1, value, true)
  return new Uint8Array(bytes.buffer)
}

function varint(field: number, value: number): Uint8Array {
  return Uint8Array.from([field << 3, ...digits(value)])
}

function text(field: number, value: string): Uint8Array {
  return nested(field, new TextEncoder().encode(value))
}

function nested(field: number, bytes: Uint8Array): Uint8Array {
  return concatBytes([Uint8Array.from([(field << 3) | 2, ...digits(bytes.length)]), bytes])
}

/** Seven bits in a byte, the lowest first. */
function digits(value: number): number[] {
  const bytes: number[] = []
  for (let rest = value; ; rest = Math.floor(rest / 128)) {
    if (rest < 128) return [...bytes, rest]
    bytes.push((rest % 128) | 128)
  }
}

/** Its length, a checksum of that, the content, and a checksum of this. */
function record(content: Uint8Array): Uint8Array {
  const length = new DataView(new ArrayBuffer(8))
  length.setBigUint64(0, BigInt(content.length), true)
  const head = new Uint8Array(length.buffer)
  return concatBytes([head, checksum(head), content, checksum(content)])
}

/** CRC-32C, turned and moved as TFRecord has it. */
function checksum(bytes: Uint8Array): Uint8Array {
  let crc = ~0
  for (const byte of bytes) crc = TABLE[(crc ^ byte) & 0xff] ^ (crc >>> 8)
  const value = ~crc >>> 0
  const masked = (((value >>> 15) | (value << 17)) + 0xa282ead8) >>> 0
  const view = new DataView(new ArrayBuffer(4))
  view.setUint32(0, masked, true)
  return new Uint8Array(view.buffer)
}

/** Castagnoli's polynomial. */
const TABLE = Uint32Array.from({ length: 256 }, (_, byte) => {
  let value = byte
  for (let bit = 0; bit < 8; bit++) value = value & 1 ? (value >>> 1) ^ 0x82f63b78 : value >>> 1
  return value
})
