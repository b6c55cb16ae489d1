// Tokens of processes. A token is a part of the names of all unfinished files and folders that its process makes, so
// that whoever meets one can tell whether that process is still running. Nothing has to be renewed, and no clocks are
// compared.

import { createHash, randomBytes } from 'node:crypto'
import { readFileSync, readlinkSync } from 'node:fs'
import { hostname } from 'node:os'

/** HOST-PROCESS-START-RANDOM. START is empty where the system does not tell it. */
export const TOKEN = '[0-9a-f]{8}-\\d+-\\d*-[0-9a-f]{8}'
const PARTS = /^([0-9a-f]{8})-(\d+)-(\d*)-[0-9a-f]{8}$/

export function newToken(): string {
  return `${hostDigest()}-${process.pid}-${startOf('self') ?? ''}-${randomBytes(4).toString('hex')}`
}

/** True if the token's process has ended for certain: it ran on this host, in this boot and container. */
export function isDead(token: string): boolean {
  const [, host, pid, start] = PARTS.exec(token) ?? []
  if (host !== hostDigest()) return false
  return start === '' ? !exists(Number(pid)) : startOf(pid) !== start
}

export function isAlive(token: string): boolean {
  return PARTS.exec(token)?.[1] === hostDigest() && !isDead(token)
}

export function processOf(token: string): number | undefined {
  const pid = PARTS.exec(token)?.[2]
  return pid === undefined ? undefined : Number(pid)
}

let digest: string | undefined

function hostDigest(): string {
  digest ??= createHash('sha256').update(`${hostname()} ${bootAndContainer()}`).digest('hex').slice(0, 8)
  return digest
}

/** Empty where the system does not tell: then a process is known by its id alone. */
function bootAndContainer(): string {
  try {
    return `${readFileSync('/proc/sys/kernel/random/boot_id', 'utf8')} ${readlinkSync('/proc/self/ns/pid')}`
  } catch {
    return ''
  }
}

/** Ticks since the boot: the system gives a process id again. Undefined if it has ended, or outside of Linux. */
function startOf(pid: string): string | undefined {
  try {
    const status = readFileSync(`/proc/${pid}/stat`, 'utf8')
    // The second field, the program's name, may hold spaces and brackets. The third is the state, the 22nd the start.
    const fields = status.slice(status.lastIndexOf(')') + 2).split(' ')
    return 'ZX'.includes(fields[0]) ? undefined : fields[19]
  } catch {
    return undefined
  }
}

function exists(pid: number): boolean {
  try {
    process.kill(pid, 0)
    return true
  } catch (error) {
    return (error as NodeJS.ErrnoException).code !== 'ESRCH'
  }
}
