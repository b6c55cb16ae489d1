// Who makes files in a folder: each process leaves a record there and renews a beat beside it while it works. So what a killed
// process leaves is told from work in progress, on any host, without comparing clocks.

import { randomBytes } from 'node:crypto'
import { appendFile, readdir, readFile, readlink, rename, rm, stat, utimes, writeFile } from 'node:fs/promises'
import { hostname } from 'node:os'
import path from 'node:path'
import { makeFolders } from './folders.js'

const BEAT_MS = 2000
/** Without a new beat for so long an owner counts as gone. If it is not, it finds its folder gone, and stops. */
const GONE_MS = 30_000
const LOOK_MS = 250
/** So long one that came first waits for another of the same time to give way. */
const TIE_MS = 5000
/** A record that has no time yet counts as the last. */
const UNTIMED_SECONDS = 365 * 24 * 3600
const MAX_ATTEMPTS = 5

const RECORD = /^owner-([0-9a-f]+)\.json$/

/** What a process says of itself. */
interface OwnerRecord {
  host: string
  process: number
  /** Linux: when the process started, and in which boot and container; a number is given to many processes in time. */
  identity: string | null
  /** It makes one job's share, beside others. */
  isShare: boolean
}

/** Another process at work. */
export interface OtherOwner {
  readonly host: string
  readonly process: number
  readonly isShare: boolean
}

/** This process's place in a folder of notes. */
export class Owner {
  /** Names what this one makes. */
  readonly token: string
  readonly #isShare: boolean
  readonly #gone = new Set<string>()
  #folder: string | undefined
  #beats = 0
  #timer: NodeJS.Timeout | undefined

  constructor(isShare: boolean) {
    this.token = randomBytes(6).toString('hex')
    this.#isShare = isShare
  }

  /** Leaves the record, and begins to renew the beat. Throws what the file system does. */
  async enter(notes: string): Promise<void> {
    this.#folder = notes
    const record: OwnerRecord = {
      host: hostname(),
      process: process.pid,
      identity: await identityOf(process.pid),
      isShare: this.#isShare,
    }
    const file = path.join(notes, recordName(this.token))
    await writeFile(path.join(notes, beatName(this.token)), '0')
    await writeFile(`${file}.tmp`, JSON.stringify(record))
    const later = Date.now() / 1000 + UNTIMED_SECONDS
    await utimes(`${file}.tmp`, later, later).catch(() => {})
    await rename(`${file}.tmp`, file)
    // Only now: who has not seen this record has an earlier time, by the file system's own clock.
    await appendFile(file, '\n')
    this.#timer = setInterval(() => void this.#beat(), BEAT_MS)
    this.#timer.unref()
  }

  /** The folder has another name now. */
  moved(notes: string): void {
    this.#folder = notes
  }

  /** Removes the record and ends the beat. */
  async leave(): Promise<void> {
    clearInterval(this.#timer)
    const folder = this.#folder
    this.#folder = undefined
    if (folder === undefined) return
    // Of a folder that another one has taken there is nothing to remove.
    for (const name of [recordName(this.token), beatName(this.token)]) {
      await rm(path.join(folder, name), { force: true }).catch(() => {})
    }
  }

  /** Whether the record is there: another one removes it when it takes the folder. */
  async isIn(): Promise<boolean> {
    const file = this.#folder && path.join(this.#folder, recordName(this.token))
    return file !== undefined && (await stat(file).catch(() => undefined)) !== undefined
  }

  /** Removes what owners left that are gone. */
  async removeGone(): Promise<void> {
    for (const token of this.#gone) {
      for (const name of [recordName(token), beatName(token)]) await rm(path.join(this.#folder!, name), { force: true })
    }
  }

  async #beat(): Promise<void> {
    const folder = this.#folder
    if (folder === undefined) return
    // Only over the file that is there: in a folder that was taken away nothing is to appear again.
    const file = path.join(folder, beatName(this.token))
    await writeFile(file, String(++this.#beats), { flag: 'r+' }).catch(() => {})
  }

  /**
   * The first other owner in these folders that is at work and, once this one has entered, was there before it. Waits where only
   * time can tell.
   *
   * @param isRival which of them count
   */
  async firstRival(notes: readonly string[], isRival: (other: OtherOwner) => boolean): Promise<OtherOwner | undefined> {
    const own = this.#folder && path.join(this.#folder, recordName(this.token))
    const since = own && (await stat(own, { bigint: true }).catch(() => undefined))
    for (const folder of notes) {
      for (const token of await tokensIn(folder)) {
        const file = path.join(folder, recordName(token))
        if (token === this.token || this.#gone.has(token)) continue
        const [record, status] = await Promise.all([
          readRecord(file),
          stat(file, { bigint: true }).catch(() => undefined),
        ])
        if (record === undefined || status === undefined || !isRival(record)) continue
        // Of two that come at the same time the first goes on.
        if (since && status.mtimeNs > since.mtimeNs) continue
        const isTie = since && status.mtimeNs === since.mtimeNs && this.token < token
        if (isTie && (await isLeft(file))) continue
        if (await isAtWork(folder, token, record)) return record
        this.#gone.add(token)
      }
    }
    return undefined
  }
}

/** Makes a folder of notes and enters it. One that leaves at this moment may remove the empty folder: then once more. */
export async function enterFolder(owner: Owner, notes: string): Promise<string | undefined> {
  for (let attempt = 0; ; attempt++) {
    try {
      const firstMade = await makeFolders(notes)
      await owner.enter(notes)
      return firstMade
    } catch (error) {
      const { code, cause } = error as NodeJS.ErrnoException
      const isGone = code === 'ENOENT' || (cause as NodeJS.ErrnoException | undefined)?.code === 'ENOENT'
      if (!isGone || attempt === MAX_ATTEMPTS) throw error
    }
  }
}

/**
 * Whether the owner with this token is at work there.
 *
 * @param options.waits false: what only time can tell counts as at work. Default true.
 */
export async function isOwned(notes: string, token: string, { waits = true } = {}): Promise<boolean> {
  const record = await readRecord(path.join(notes, recordName(token)))
  if (record === undefined) return false
  return waits ? isAtWork(notes, token, record) : ((await isRunningHere(record)) ?? true)
}

/** Whether the owner of a record leaves soon: of two that came in one tick of the clock the other one may not have seen this one. */
async function isLeft(record: string): Promise<boolean> {
  for (let waitedMs = 0; waitedMs < TIE_MS; waitedMs += LOOK_MS / 10) {
    if ((await stat(record).catch(() => undefined)) === undefined) return true
    await new Promise((resolve) => setTimeout(resolve, LOOK_MS / 10))
  }
  return false
}

async function isAtWork(notes: string, token: string, record: OwnerRecord): Promise<boolean> {
  const known = await isRunningHere(record)
  if (known !== undefined) return known
  const beat = () => readFile(path.join(notes, beatName(token)), 'utf8').catch(() => undefined)
  const first = await beat()
  for (let waitedMs = 0; waitedMs < GONE_MS; waitedMs += LOOK_MS) {
    await new Promise((resolve) => setTimeout(resolve, LOOK_MS))
    const now = await beat()
    if (now === undefined) return false
    if (now !== first) return true
  }
  return false
}

/** Undefined for a process of another host or container, or where the system does not tell. */
async function isRunningHere(record: OwnerRecord): Promise<boolean | undefined> {
  if (record.host !== hostname()) return undefined
  const [own, other] = await Promise.all([identityOf(process.pid), identityOf(record.process)])
  if (own === null || record.identity === null) return isThere(record.process) ? undefined : false
  if (spaceOf(own) !== spaceOf(record.identity)) return undefined
  return other === record.identity
}

/** Boot, container and start of a process, on Linux; null elsewhere, and where there is no such process. */
async function identityOf(pid: number): Promise<string | null> {
  try {
    const [boot, space, status] = await Promise.all([
      readFile('/proc/sys/kernel/random/boot_id', 'utf8'),
      readlink('/proc/self/ns/pid'),
      readFile(`/proc/${pid}/stat`, 'utf8'),
    ])
    // The second field, the program's name, may hold spaces and brackets; the third is its state, the 22nd its start.
    const fields = status.slice(status.lastIndexOf(')') + 2).split(' ')
    return 'ZX'.includes(fields[0]) ? null : `${boot.trim()} ${space} ${fields[19]}`
  } catch {
    return null
  }
}

function isThere(pid: number): boolean {
  try {
    process.kill(pid, 0)
    return true
  } catch (error) {
    return (error as NodeJS.ErrnoException).code !== 'ESRCH'
  }
}

function spaceOf(identity: string): string {
  return identity.slice(0, identity.lastIndexOf(' '))
}

async function readRecord(file: string): Promise<OwnerRecord | undefined> {
  try {
    const record = JSON.parse(await readFile(file, 'utf8')) as OwnerRecord | null
    return typeof record?.host === 'string' && typeof record.process === 'number' ? record : undefined
  } catch {
    return undefined
  }
}

async function tokensIn(notes: string): Promise<string[]> {
  const names = await readdir(notes).catch((): string[] => [])
  return names.flatMap((name) => RECORD.exec(name)?.[1] ?? [])
}

function recordName(token: string): string {
  return `owner-${token}.json`
}

function beatName(token: string): string {
  return `beat-${token}`
}
