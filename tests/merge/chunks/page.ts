// The script of browser.slow.test.ts in the page: merges from picked files into the origin's private file system and
// into streams.

import { FilesDirectory, HandleDirectory, type MergeProgress, StreamDirectory } from '../../../src/api/index.js'
import { mergeCheckpoint, unmergeCheckpoint } from '../toolkit.js'

/** File → SHA-256. */
export type Digests = Record<string, string>

export interface PageResult {
  isIsolated: boolean
  /** The files of the merge into OPFS. */
  folder: Digests
  changed: number
  /**
   * The digest of the file that a merge writes into a stream. `largestPiece` is the length of the largest piece that
   * the stream got, in bytes.
   */
  stream: string
  largestPiece: number
  progress: MergeProgress
  /** The files after unmerging the folder in OPFS. */
  unmerged: Digests
  /** The files that a stopped merge leaves, and its error. */
  stopped: string[]
  stoppedBy: string
  /** Errors, by attempt. */
  errors: Record<string, string>
}

async function digest(bytes: BufferSource): Promise<string> {
  const hash = new Uint8Array(await crypto.subtle.digest('SHA-256', bytes))
  return [...hash].map((byte) => byte.toString(16).padStart(2, '0')).join('')
}

async function fetchFile(path: string): Promise<File> {
  const response = await fetch(`/${path}`)
  const file = new File([await response.arrayBuffer()], path.slice(path.lastIndexOf('/') + 1))
  // An input for folders sets this path.
  Object.defineProperty(file, 'webkitRelativePath', { value: path })
  return file
}

async function digestsOf(handle: FileSystemDirectoryHandle): Promise<Digests> {
  const result: Digests = {}
  for await (const [name, entry] of handle.entries()) {
    if (!(entry instanceof FileSystemFileHandle)) continue
    result[name] = await digest(await (await entry.getFile()).arrayBuffer())
  }
  return result
}

async function errorOf(work: Promise<unknown>): Promise<string> {
  return work.then(
    () => 'none',
    // Bundles do not keep class names.
    (error: Error & { code?: string }) => `${error instanceof DOMException ? error.name : error.code} ${error.message}`,
  )
}

async function run(): Promise<PageResult> {
  const paths = (await (await fetch('/files.json')).json()) as string[]
  const files = await Promise.all(paths.map(fetchFile))
  const inFolder = (name: string) => files.filter((file) => file.webkitRelativePath.startsWith(`${name}/`))
  const [base, adapter] = [new FilesDirectory(inFolder('base')), new FilesDirectory(inFolder('adapter'))]
  const opfs = await navigator.storage.getDirectory()
  const folderOf = (name: string) => opfs.getDirectoryHandle(name, { create: true })

  const merged = await folderOf('merged')
  let progress: MergeProgress = { writtenBytes: 0, totalBytes: 0 }
  const { changed } = await mergeCheckpoint(base, adapter, new HandleDirectory(merged), {
    on: {
      progress: (now) => {
        progress = now
      },
    },
  })

  let largestPiece = 0
  const pieces = new TransformStream<Uint8Array, Uint8Array>({
    transform(bytes, controller) {
      largestPiece = Math.max(largestPiece, bytes.byteLength)
      controller.enqueue(bytes)
    },
  })
  const received = new Response(pieces.readable as ReadableStream<Uint8Array<ArrayBuffer>>).arrayBuffer()
  await mergeCheckpoint(base, adapter, new StreamDirectory(() => pieces.writable), {
    weightsOnly: true,
    maxShardBytes: 2 ** 40,
  })
  const stream = await digest(await received)

  const unmerged = await folderOf('unmerged')
  await unmergeCheckpoint(new HandleDirectory(merged), adapter, new HandleDirectory(unmerged))

  const stopped = await folderOf('stopped')
  const controller = new AbortController()
  const stoppedBy = await errorOf(
    mergeCheckpoint(base, adapter, new HandleDirectory(stopped), {
      signal: controller.signal,
      on: {
        progress: ({ writtenBytes }) => {
          if (writtenBytes > 1 << 20) controller.abort()
        },
      },
    }),
  )

  const errors = {
    'no such file': await errorOf(new HandleDirectory(merged).open('absent')),
    'a name that leads out': await errorOf(new HandleDirectory(merged).open('../merged/config.json')),
    'a folder': await errorOf(new HandleDirectory(opfs).open('merged')),
    'picked files': await errorOf(mergeCheckpoint(base, adapter, adapter)),
    'the base': await errorOf(
      mergeCheckpoint(new HandleDirectory(merged), adapter, new HandleDirectory(await folderOf('merged'))),
    ),
  }
  return {
    isIsolated: globalThis.crossOriginIsolated,
    folder: await digestsOf(merged),
    changed,
    stream,
    largestPiece,
    progress,
    unmerged: await digestsOf(unmerged),
    stopped: Object.keys(await digestsOf(stopped)),
    stoppedBy,
    errors,
  }
}

let body: string
try {
  body = JSON.stringify(await run())
} catch (error) {
  body = JSON.stringify({ failed: String(error), stack: (error as Error).stack })
}
await fetch('/result', { method: 'POST', body })
