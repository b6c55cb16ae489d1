// Sends to the disk what is written while more is computed, so that little is left to wait for at the end. The system
// would keep it for as long as it has memory, and then send all of it at once.

import { fdatasync, fsync } from 'node:fs'
import { promisify } from 'node:util'
import { fileError } from '../../io/node/errors.js'

/** A file that is being written. */
export interface OpenFile {
  readonly name: string
  readonly fd: number
}

const syncData = promisify(fdatasync)
const syncAll = promisify(fsync)

export class Flusher {
  #sending: Promise<void> | undefined
  /** First error of a file that was sent early: the system tells it once, and then forgets it. */
  #failure: unknown

  /** Begins to send what a file has so far; does nothing while something is being sent. */
  send(file: OpenFile): void {
    this.#sending ??= sync(syncData, file)
      .catch((error) => {
        this.#failure ??= error
      })
      .finally(() => {
        this.#sending = undefined
      })
  }

  /**
   * Waits until all of a file is on disk.
   *
   * @throws FileError when it, or what was sent before, cannot be written
   */
  async finish(file: OpenFile): Promise<void> {
    await this.end()
    if (this.#failure !== undefined) throw this.#failure
    await sync(syncAll, file)
  }

  /** Waits for what is being sent. */
  async end(): Promise<void> {
    await this.#sending
  }
}

async function sync(how: (fd: number) => Promise<void>, { name, fd }: OpenFile): Promise<void> {
  try {
    await how(fd)
  } catch (error) {
    throw fileError(name, 'cannot be written', error)
  }
}
