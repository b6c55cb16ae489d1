// Downloads one file to the disk. It continues where an earlier download stopped, and checks the result.

import { createHash, type Hash } from 'node:crypto'
import { createReadStream } from 'node:fs'
import { type FileHandle, open, readdir, rename, stat, unlink, writeFile } from 'node:fs/promises'
import path from 'node:path'
import { closingOnError } from '../../../../core/base/bytes.js'
import { FileError } from '../../../../core/base/errors.js'
import { codeOf, fileError, withFileErrors } from '../../node/errors.js'
import { freeBytes } from '../../node/folders.js'
import { isDead, newToken } from '../../node/owner.js'
import { type Digest, damage, gitHeader } from '../api.js'
import type { OnDownload } from '../directory.js'
import { type HubAnswer, type HubConnection, HubError, isWorthATry, pause, request, SLOWEST } from '../request.js'

export interface Download {
  readonly connection: HubConnection
  readonly url: string
  readonly name: string
  readonly byteLength: number
  /** Undefined if the server does not tell it. Then only the length is checked. */
  readonly digest: Digest | undefined
  readonly target: string
  readonly onDownload?: OnDownload | undefined
  refused(response: Response): FileError
}

/** A download fails after this many attempts without progress. With the pauses between, they take half a minute. */
const MAX_TRIES = 5

const underWay = new Map<string, Promise<void>>()

/** Creates the target unless it exists. After an error, the bytes that have arrived are kept for the next download. */
export async function download(job: Download): Promise<void> {
  const running = underWay.get(job.target)
  if (running !== undefined) return running
  const work = claimPartial(job.target)
    .then((partial) => fill(partial, job))
    .finally(() => underWay.delete(job.target))
  underWay.set(job.target, work)
  return work
}

async function fill(partial: string, job: Download): Promise<void> {
  const { target } = job
  let writer: Writer | undefined
  try {
    writer = await Writer.open(partial, job)
    const isResumed = writer.received > 0
    checkRoom(job, writer.received)
    await receive(writer, job)
    if (isResumed && !writer.isRight()) {
      // After a crash the partial file may be cut off or filled with zeros.
      await writer.restart()
      await receive(writer, job)
    }
    if (!writer.isRight()) throw new DamagedError(job)
    await writer.finish()
    await rename(partial, target)
  } catch (error) {
    await writer?.close()
    // The bytes that have arrived are kept for the next attempt. If they cannot be, it starts again.
    const end = error instanceof DamagedError ? unlink(partial) : rename(partial, `${target}.lowrank.incomplete`)
    await end.catch(() => {})
    throw error instanceof FileError || job.connection.signal?.aborted
      ? error
      : fileError(target, 'cannot be written', error)
  }
  for (const { file, isTaken } of await findPartials(target)) if (!isTaken) await unlink(file).catch(() => {})
}

async function receive(writer: Writer, job: Download): Promise<void> {
  const { connection, url, byteLength, name } = job
  job.onDownload?.({ name, byteLength, receivedBytes: writer.received })
  for (let tries = 0; writer.received < byteLength; ) {
    const before = writer.received
    let answer: HubAnswer | undefined
    let failure: unknown
    const [startedAt, { restarts }] = [performance.now(), writer]
    try {
      answer = await request(connection, url, {
        'accept-encoding': 'identity',
        ...(before > 0 && { range: `bytes=${before}-` }),
      })
      await take(answer, writer, job)
    } catch (error) {
      if (!isWorthATry(error)) throw error
      failure = error
    }
    if (writer.received === byteLength) return
    // Without this, a server that always starts again, or breaks off after a few bytes, could keep us busy for ever.
    const enough = Math.max(1, (SLOWEST * (performance.now() - startedAt)) / 1000)
    const isProgress = writer.restarts === restarts && writer.received - before >= enough
    tries = isProgress ? 1 : tries + 1
    if (tries >= MAX_TRIES) throw broken(job, writer.received, failure)
    await pause(connection, tries, answer)
  }
}

async function take(answer: HubAnswer, writer: Writer, job: Download): Promise<void> {
  const { response } = answer
  const start = /^bytes (\d+)-\d+\/(\d+|\*)$/.exec(response.headers.get('content-range') ?? '')
  const isNext = response.status === 206 && Number(start?.[1]) === writer.received
  if (!isNext && writer.received > 0 && (response.ok || response.status === 416)) await writer.restart()
  if (!response.ok || (response.status === 206 && !isNext)) {
    await answer.cancel()
    if (response.ok || response.status === 416) return
    throw job.refused(response)
  }
  // This is a proxy's page, or the pointer to a file in LFS. Trying again would not help.
  const length = response.headers.get('content-encoding') === null ? response.headers.get('content-length') : null
  if (length !== null && writer.received + Number(length) !== job.byteLength) {
    await answer.cancel()
    throw new DamagedError(job, `${length} bytes`)
  }
  for await (const chunk of answer.chunks()) {
    if (writer.received + chunk.byteLength > job.byteLength) throw new DamagedError(job, 'more')
    await writer.write(chunk)
    job.onDownload?.({ name: job.name, byteLength: job.byteLength, receivedBytes: writer.received })
  }
}

/** The file that a download goes into until it is complete. */
class Writer {
  received = 0
  /** How often the download started again from the first byte. */
  restarts = 0
  readonly #handle: FileHandle
  readonly #job: Download
  #hash: Hash

  private constructor(handle: FileHandle, job: Download) {
    this.#handle = handle
    this.#job = job
    this.#hash = newHash(job)
  }

  static async open(file: string, job: Download): Promise<Writer> {
    const handle = await open(file, 'a')
    const writer = new Writer(handle, job)
    return closingOnError(handle, async () => {
      if ((await handle.stat()).size > job.byteLength) await handle.truncate(0)
      for await (const chunk of createReadStream(file)) {
        writer.#hash.update(chunk)
        writer.received += chunk.length
      }
      return writer
    })
  }

  async write(bytes: Uint8Array): Promise<void> {
    try {
      await this.#handle.writeFile(bytes)
      this.#hash.update(bytes)
      this.received += bytes.byteLength
    } catch (cause) {
      const { name, byteLength, target } = this.#job
      const { what } = fileError(name, 'cannot be kept', cause)
      const { size } = await this.#handle.stat()
      const kept = `${size} of ${byteLength} bytes`
      const hint = `Make room in ${path.dirname(target)}, or set HF_HOME to another disk; ${kept} are kept, and the next try goes on from there`
      throw new FileError({ where: name, what, hint, cause })
    }
  }

  async restart(): Promise<void> {
    await this.#handle.truncate(0)
    this.#hash = newHash(this.#job)
    this.received = 0
    this.restarts++
  }

  isRight(): boolean {
    const { digest, byteLength } = this.#job
    if (digest === undefined) return this.received === byteLength
    return this.#hash.copy().digest('hex') === ('sha256' in digest ? digest.sha256 : digest.gitSha1)
  }

  /** Flushes the bytes to disk before the rename. Otherwise a crash could leave the name of an incomplete file. */
  async finish(): Promise<void> {
    await this.#handle.sync()
    await this.#handle.close()
  }

  close(): Promise<void> {
    return this.#handle.close().catch(() => {})
  }
}

function newHash({ digest, byteLength }: Download): Hash {
  return digest === undefined || 'sha256' in digest
    ? createHash('sha256')
    : createHash('sha1').update(gitHeader(byteLength))
}

/** Checks the room on the disk before the first byte arrives. @throws FileError */
function checkRoom({ name, byteLength, target }: Download, received: number): void {
  const free = freeBytes(path.dirname(target))
  if (free >= byteLength - received) return
  throw new FileError({
    where: name,
    what: `no room for it in ${path.dirname(target)}`,
    expected: `${megabytes(byteLength - received)} free`,
    got: megabytes(free),
    hint: 'Make room, or set HF_HOME to another disk',
  })
}

function megabytes(bytes: number): string {
  return `${Math.round(bytes / 1e6)} MB`
}

class DamagedError extends FileError {
  constructor(job: Download, got?: string) {
    super(damage(job, got))
  }
}

function broken({ name, byteLength }: Download, received: number, cause: unknown): HubError {
  return new HubError('unreachable', {
    where: name,
    what: `the download broke off at ${received} of ${byteLength} bytes`,
    ...(cause instanceof FileError && { got: cause.what }),
    hint: 'Try again: it goes on from there',
    cause,
  })
}

/**
 * Returns the unfinished file of a download, beside its target, with the bytes that an earlier download left. Its name
 * tells which process writes it, so two processes never write into one file: each downloads for itself, and the last
 * one's file stays. What a dead process has left is taken over with a rename.
 */
async function claimPartial(target: string): Promise<string> {
  const partial = `${target}.lowrank-${newToken()}.incomplete`
  await withFileErrors(partial, 'cannot be written', async () => {
    const free = (await findPartials(target)).filter(({ isTaken }) => !isTaken)
    for (const { file } of free.sort((a, b) => b.byteLength - a.byteLength)) {
      if (await renamed(file, partial)) return
    }
    await writeFile(partial, '', { flag: 'wx' })
  })
  return partial
}

async function findPartials(target: string) {
  const folder = path.dirname(target)
  const prefix = `${path.basename(target)}.lowrank`
  const names = (await readdir(folder).catch(() => [])).filter((name) => name.startsWith(prefix))
  const found = await Promise.all(
    names.map(async (name) => {
      const token = /^-(.+)\.incomplete$/.exec(name.slice(prefix.length))?.[1]
      const file = path.join(folder, name)
      const status = await stat(file).catch(() => undefined)
      if (status === undefined) return []
      return [{ file, byteLength: status.size, isTaken: token !== undefined && !isDead(token) }]
    }),
  )
  return found.flat()
}

/** Renames a file. Returns false if another process was faster. */
async function renamed(from: string, to: string): Promise<boolean> {
  try {
    await rename(from, to)
    return true
  } catch (error) {
    if (codeOf(error) === 'ENOENT') return false
    throw error
  }
}
