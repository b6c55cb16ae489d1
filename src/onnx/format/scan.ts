// Reads an .onnx file without its weights: large tensors become external data, that is, ranges of the same file.
// Wire format: https://protobuf.dev/programming-guides/encoding/

import { BinaryWriter, WireType } from '@bufbuild/protobuf/wire'
import { type ByteSource, concatBytes } from '../../core/base/bytes.js'
import { FormatError } from '../../core/base/errors.js'

/** Smaller tensors (shapes, scalars, axes) stay in the graph, so that they can be read immediately. */
const EXTERNAL_THRESHOLD = 1024

const WINDOW = 32 * 1024

/** The limit of protobuf's own parsers. */
const MAX_DEPTH = 100

/** If more than this remains, the file has weights in a form that cannot be left in place. */
const MAX_SKELETON = 1 << 30

type Kind = 'model' | 'graph' | 'node' | 'attribute' | 'function' | 'tensor'

/** The fields of each message that lead to tensors. The numbers are onnx.proto's. */
const CHILDREN: Record<Kind, Readonly<Record<number, Kind>>> = {
  model: { 7: 'graph', 25: 'function' },
  graph: { 1: 'node', 5: 'tensor' },
  node: { 5: 'attribute' },
  attribute: { 5: 'tensor', 6: 'graph', 10: 'tensor', 11: 'graph' },
  function: { 7: 'node', 11: 'attribute' },
  tensor: {},
}

const TENSOR = { dataType: 2, floatData: 4, rawData: 9, externalData: 13, dataLocation: 14 }
const FLOAT = 1

/** A range of the file, or new bytes. */
type Piece = readonly [start: number, end: number] | Uint8Array

/** The file without its large tensors. External data refer to it as `location`. Throws FormatError without a graph. */
export async function scanSkeleton(source: ByteSource, location: string): Promise<Uint8Array> {
  const scanner = new Scanner(source, location)
  const pieces = (await scanner.message('model', 0, source.byteLength, 0)) ?? [[0, source.byteLength] as const]
  if (!scanner.hasGraph) throw scanner.error('it holds no graph')
  if (sizeOf(pieces) > MAX_SKELETON) {
    throw scanner.error('its weights are not stored as raw or external data, so that they cannot stay in the file')
  }
  const chunks: Uint8Array[] = []
  for (const piece of pieces) {
    chunks.push(piece instanceof Uint8Array ? piece : await source.read(piece[0], piece[1] - piece[0]))
  }
  return concatBytes(chunks)
}

class Scanner {
  #window: Uint8Array = new Uint8Array(0)
  #windowStart = 0
  hasGraph = false

  constructor(
    private readonly source: ByteSource,
    private readonly location: string,
  ) {}

  /**
   * Returns the message in [start, end) with references in place of large tensors, or undefined if its bytes can stay.
   */
  async message(kind: Kind, start: number, end: number, depth: number): Promise<Piece[] | undefined> {
    if (depth > MAX_DEPTH) throw this.error(`messages are nested more than ${MAX_DEPTH} deep`)
    const pieces: Piece[] = []
    let kept = start
    let at = start
    const cut = (from: number, to: number) => {
      if (from > kept) pieces.push([kept, from])
      kept = to
    }
    let dataType = 0
    let content: { field: number; start: number; end: number } | undefined
    while (at < end) {
      const fieldStart = at
      const { field, bodyStart, bodyEnd, value } = await this.#field(at, end)
      at = bodyEnd
      if (value !== undefined) {
        if (kind === 'tensor' && field === TENSOR.dataType) dataType = value
        if (kind === 'tensor' && field === TENSOR.dataLocation && value === 1) return undefined
      }
      if (bodyStart === undefined) continue
      if (kind === 'model' && field === 7) this.hasGraph = true
      if (bodyEnd - bodyStart < EXTERNAL_THRESHOLD) continue
      if (kind === 'tensor' && (field === TENSOR.rawData || field === TENSOR.floatData)) {
        content = { field, start: bodyStart, end: bodyEnd }
        cut(fieldStart, bodyEnd)
        continue
      }
      const child = CHILDREN[kind][field]
      const body = child && (await this.message(child, bodyStart, bodyEnd, depth + 1))
      if (body === undefined) continue
      cut(fieldStart, bodyEnd)
      pieces.push(lengthDelimited(field, sizeOf(body)))
      for (const piece of body) pieces.push(piece)
    }
    if (pieces.length === 0 && kept === start) return undefined
    if (kept < end) pieces.push([kept, end])
    if (content !== undefined) {
      // Packed float_data has the layout of raw_data, except for complex tensors, which stay in the graph.
      if (content.field === TENSOR.floatData && dataType !== FLOAT) return undefined
      pieces.push(this.#reference(content.start, content.end - content.start))
    }
    return pieces
  }

  /** Reads a field's header. Only length-delimited fields have a `body`. */
  async #field(
    at: number,
    end: number,
  ): Promise<{ field: number; bodyStart?: number; bodyEnd: number; value?: number }> {
    const tag = await this.#varint(at, end)
    const field = Math.floor(tag.value / 8)
    const wireType = tag.value % 8
    const fixed = wireType === WireType.Bit64 ? 8 : wireType === WireType.Bit32 ? 4 : undefined
    const hasNumber = wireType === WireType.Varint || wireType === WireType.LengthDelimited
    if (field === 0 || (fixed === undefined && !hasNumber)) throw this.error(`there is no valid field at byte ${at}`)
    const number = fixed === undefined ? await this.#varint(tag.end, end) : { value: 0, end: tag.end + fixed }
    if (wireType === WireType.LengthDelimited && number.end + number.value > end) {
      throw this.error(`byte ${at} announces ${number.value} bytes, more than there are`)
    }
    if (number.end > end) throw this.error('it ends in the middle of a field')
    if (wireType !== WireType.LengthDelimited) return { field, bodyEnd: number.end, value: number.value }
    return { field, bodyStart: number.end, bodyEnd: number.end + number.value }
  }

  #reference(offset: number, byteLength: number): Uint8Array {
    const writer = new BinaryWriter()
    const entries = { location: this.location, offset: `${offset}`, length: `${byteLength}` }
    for (const [key, value] of Object.entries(entries)) {
      writer.tag(TENSOR.externalData, WireType.LengthDelimited).fork()
      writer.tag(1, WireType.LengthDelimited).string(key)
      writer.tag(2, WireType.LengthDelimited).string(value).join()
    }
    return writer.tag(TENSOR.dataLocation, WireType.Varint).uint32(1).finish()
  }

  /** Reads a protobuf varint: seven bits in each byte. Numbers below 2⁵³ are exact. */
  async #varint(at: number, end: number): Promise<{ value: number; end: number }> {
    if (at < this.#windowStart || at + 10 > this.#windowStart + this.#window.byteLength) {
      this.#windowStart = at
      this.#window = await this.source.read(at, Math.min(WINDOW, this.source.byteLength - at))
    }
    let value = 0
    let scale = 1
    for (let i = 0; i < 10; i++) {
      if (at + i >= end) throw this.error('it ends in the middle of a field')
      const byte = this.#window[at + i - this.#windowStart]
      value += (byte & 0x7f) * scale
      if (byte < 0x80) return { value, end: at + i + 1 }
      scale *= 128
    }
    throw this.error(`byte ${at} starts no number`)
  }

  error(what: string): FormatError {
    return new FormatError({
      where: this.source.name,
      what: `not an ONNX model: ${what}`,
      hint: 'Is it an .onnx file, and was it downloaded whole?',
    })
  }
}

function sizeOf(pieces: readonly Piece[]): number {
  return pieces.reduce((sum, piece) => sum + (piece instanceof Uint8Array ? piece.byteLength : piece[1] - piece[0]), 0)
}

export function lengthDelimited(field: number, byteLength: number): Uint8Array {
  return new BinaryWriter().tag(field, WireType.LengthDelimited).int64(byteLength).finish()
}
