// Tokens of processes. A token is a part of the names of all unfinished files and folders that its process makes, so
// that whoever meets one can tell whether that process is still running. Nothing has to be renewed, and no clocks are
// compared.

import { createHash, randomBytes } from 'node:crypto'
import { readFileSync, readlinkSync } from 'node:fs'
import { hostname } from 'node:os'
import { codeOf } from './errors.js'

/** HOST-PROCESS-START-RANDOM. HOST stands for the host, its boot and the container, as far as the system tells them. */
export const TOKEN = '[0-9a-f]{8}-\\d+-\\d*-[0-9a-f]{8}'

export function newToken(): string {
  return `${hostDigest()}-${process.pid}-${startOf(process.pid)}-${randomBytes(4).toString('hex')}`
}

/** True if the token's process has ended for certain: it ran on this host, in this boot and container. */
export function isDead(token: string): boolean {
  const [host, pid, start] = token.split('-')
  if (host !== hostDigest()) return false
  const current = startOf(Number(pid))
  return current === undefined || (current !== start && current !== '' && start !== '')
}

function hostDigest(): string {
  let place = hostname()
  try {
    place += ` ${readFileSync('/proc/sys/kernel/random/boot_id')} ${readlinkSync('/proc/self/ns/pid')}`
  } catch {
    // Only Linux has these files.
  }
  return createHash('sha256').update(place).digest('hex').slice(0, 8)
}

/**
 * Returns when a process started, because the system reuses ids. Returns '' if the system does not tell it, and
 * undefined if the process has ended.
 */
function startOf(pid: number): string | undefined {
  try {
    process.kill(pid, 0)
  } catch (error) {
    if (codeOf(error) === 'ESRCH') return undefined
  }
  try {
    const status = readFileSync(`/proc/${pid}/stat`, 'utf8')
    // The second field, the program's name, may hold spaces and brackets. The third is the state, the 22nd the start.
    const fields = status.slice(status.lastIndexOf(')') + 2).split(' ')
    return 'ZX'.includes(fields[0]) ? undefined : fields[19]
  } catch {
    return ''
  }
}
