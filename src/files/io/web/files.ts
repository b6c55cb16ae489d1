// A Blob as a ByteSource. Files that a user picked and files in OPFS are Blobs. Works in Node too.

import { type ByteSource, checkRange } from '../../../core/base/bytes.js'
import { FileError } from '../../../core/base/errors.js'

export class BlobSource implements ByteSource {
  readonly name: string
  readonly byteLength: number
  readonly blob: Blob

  constructor(blob: Blob, name = blob instanceof File ? blob.name : 'blob') {
    this.blob = blob
    this.name = name
    this.byteLength = blob.size
  }

  async read(offset: number, byteLength: number): Promise<Uint8Array> {
    checkRange(this, offset, byteLength)
    try {
      return new Uint8Array(await this.blob.slice(offset, offset + byteLength).arrayBuffer())
    } catch (cause) {
      throw new FileError({ where: this.name, what: 'cannot be read', hint: 'Pick the file again', cause })
    }
  }

  async close(): Promise<void> {}
}
