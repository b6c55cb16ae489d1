// Event files of TensorBoard: TFRecords (https://www.tensorflow.org/tutorials/load_data/tfrecord), each an Event of
// event.proto and summary.proto of tensorboard/compat/proto.

import { BinaryWriter, WireType } from '@bufbuild/protobuf/wire'
import { concatBytes, crcTable } from '../base/bytes.js'

export interface LoggedEvent {
  /** Seconds since 1970. */
  readonly time: number
  readonly step: number
  /** Values by name, such as `train/loss`. */
  readonly values: Readonly<Record<string, number>>
}

export function fileHeader(time: number): Uint8Array {
  return record(event(time, 0).tag(FILE_VERSION, WireType.LengthDelimited).string('brain.Event:2'))
}

export function eventRecord({ time, step, values }: LoggedEvent): Uint8Array {
  const summary = event(time, step).tag(SUMMARY, WireType.LengthDelimited).fork()
  for (const [name, value] of Object.entries(values)) {
    summary.tag(SUMMARY_VALUE, WireType.LengthDelimited).fork()
    summary.tag(TAG, WireType.LengthDelimited).string(name)
    summary.tag(SIMPLE_VALUE, WireType.Bit32).float(Math.fround(value)).join()
  }
  return record(summary.join())
}

/** Marks a resumed run: TensorBoard then ignores events of this step and later ones in older files of the folder. */
export function restartRecord(time: number, step: number): Uint8Array {
  const log = event(time, step).tag(SESSION_LOG, WireType.LengthDelimited).fork()
  return record(log.tag(STATUS, WireType.Varint).uint32(1).join())
}

const [WALL_TIME, STEP, FILE_VERSION, SUMMARY, SESSION_LOG] = [1, 2, 3, 5, 7]
const SUMMARY_VALUE = 1
const [TAG, SIMPLE_VALUE] = [1, 2]
const STATUS = 1

function event(time: number, step: number): BinaryWriter {
  const writer = new BinaryWriter().tag(WALL_TIME, WireType.Bit64).double(time)
  return step === 0 ? writer : writer.tag(STEP, WireType.Varint).int64(step)
}

/** A TFRecord: the length, a checksum of the length, the content, and a checksum of the content. */
function record(writer: BinaryWriter): Uint8Array {
  const content = writer.finish()
  const length = new DataView(new ArrayBuffer(8))
  length.setBigUint64(0, BigInt(content.length), true)
  const head = new Uint8Array(length.buffer)
  return concatBytes([head, checksum(head), content, checksum(content)])
}

/** CRC-32C, rotated and shifted as the TFRecord format asks. */
function checksum(bytes: Uint8Array): Uint8Array {
  let crc = ~0
  for (const byte of bytes) crc = TABLE[(crc ^ byte) & 0xff] ^ (crc >>> 8)
  const value = ~crc >>> 0
  const masked = (((value >>> 15) | (value << 17)) + 0xa282ead8) >>> 0
  const view = new DataView(new ArrayBuffer(4))
  view.setUint32(0, masked, true)
  return new Uint8Array(view.buffer)
}

const TABLE = crcTable(0x82f63b78)
