// Streams over files and requests. Those of `Readable.toWeb` throw where nobody can catch it if a caller leaves.

import type { FileHandle } from 'node:fs/promises'
import type { IncomingMessage } from 'node:http'

const PIECE = 1 << 16

/** The first `bytes` bytes of a file. The file is closed at the end, on an error, and if the reader leaves. */
export function fileStream(file: FileHandle, bytes: number): ReadableStream<Uint8Array> {
  let left = bytes
  return new ReadableStream<Uint8Array>(
    {
      async pull(controller) {
        try {
          const { bytesRead, buffer } = await file.read(new Uint8Array(Math.min(left, PIECE)))
          left -= bytesRead
          if (left > 0 && bytesRead === 0) throw new Error('The file is shorter than it was')
          if (bytesRead > 0) controller.enqueue(buffer.subarray(0, bytesRead))
          if (left > 0) return
          await file.close()
          controller.close()
        } catch (error) {
          await file.close()
          throw error
        }
      },
      cancel: () => file.close(),
    },
    { highWaterMark: 0 },
  )
}

/** The body of a request. If the reader leaves, the connection stays open for the answer. */
export function bodyStream(incoming: IncomingMessage): ReadableStream<Uint8Array> {
  // If the caller leaves, who reads hears of it. If nobody reads, nobody needs to.
  incoming.on('error', () => {})
  const pieces = incoming.iterator({ destroyOnReturn: false })
  return new ReadableStream<Uint8Array>(
    {
      async pull(controller) {
        const next = await pieces.next()
        if (next.done) controller.close()
        else controller.enqueue(next.value)
      },
    },
    { highWaterMark: 0 },
  )
}
