// Views whose elements do not follow one another in their storage, copied into row-major order after the end of the
// file.

import { type ByteSource, checkRange, concatBytes } from '../../base/bytes.js'
import { FormatError } from '../../base/errors.js'
import { elementCount, formatShape } from '../../base/tensor.js'
import type { TorchTensor } from './rebuild.js'

/**
 * Beside some times the file's own length: a stride of 0 makes much out of nothing, and so do many views of one
 * storage.
 */
const SPARE_BYTES = 1 << 26
const TIMES_FILE = 8

/** Offsets count from the file's beginning. */
export class Gatherer {
  readonly #parts: Uint8Array[] = []
  #byteLength = 0
  #costBytes = 0

  constructor(private readonly source: ByteSource) {}

  /** Throws FormatError when the views of the file are much larger than the file. */
  async place(tensor: TorchTensor, storageStart: number, where: string): Promise<number> {
    const { shape, strides, type } = tensor
    const start = storageStart + tensor.offset * type.bytes
    const byteLength = elementCount(shape) * type.bytes
    const isInPlace = byteLength === 0 || tensor.isContiguous
    const span = isInPlace ? 0 : shape.reduce((sum, dim, i) => sum + (dim - 1) * strides[i], 1) * type.bytes
    this.#costBytes += span + byteLength
    if (this.#costBytes > this.source.byteLength * TIMES_FILE + SPARE_BYTES) {
      throw new FormatError({
        where,
        what: 'views that are much larger than the file',
        got: `shape ${formatShape(shape)}, strides ${formatShape(strides)}`,
      })
    }
    if (isInPlace) return start
    const values = await this.source.read(start, span)
    const copy = new Uint8Array(byteLength)
    copyStrided(values, copy, tensor)
    this.#parts.push(copy)
    this.#byteLength += byteLength
    return this.source.byteLength + this.#byteLength - byteLength
  }

  bytes(): Uint8Array {
    return concatBytes(this.#parts)
  }
}

function copyStrided(from: Uint8Array, to: Uint8Array, { shape, strides, type: { bytes } }: TorchTensor): void {
  const index = shape.map(() => 0)
  let at = 0
  for (let written = 0; written < to.byteLength; written += bytes) {
    for (let i = 0; i < bytes; i++) to[written + i] = from[at + i]
    for (let dim = shape.length - 1; dim >= 0; dim--) {
      at += strides[dim] * bytes
      if (++index[dim] < shape[dim]) break
      at -= strides[dim] * shape[dim] * bytes
      index[dim] = 0
    }
  }
}

/** A file, and after its end bytes from memory. Native code cannot open that: there is no `realPath`. */
export class GatheredSource implements ByteSource {
  readonly name: string
  readonly byteLength: number

  constructor(
    private readonly file: ByteSource,
    private readonly rest: Uint8Array,
  ) {
    this.name = file.name
    this.byteLength = file.byteLength + rest.byteLength
  }

  async read(offset: number, byteLength: number): Promise<Uint8Array> {
    checkRange(this, offset, byteLength)
    const inFile = Math.min(byteLength, Math.max(0, this.file.byteLength - offset))
    const restStart = Math.max(0, offset - this.file.byteLength)
    const rest = this.rest.subarray(restStart, restStart + byteLength - inFile)
    if (inFile === 0) return rest
    const bytes = await this.file.read(offset, inFile)
    return rest.byteLength === 0 ? bytes : concatBytes([bytes, rest])
  }

  close(): Promise<void> {
    return this.file.close()
  }
}
