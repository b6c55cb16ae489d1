// Checks the content of a file by the digest under which the Hub keeps it.

import type { ErrorDetails } from '../../base/errors.js'
import type { HubFile } from './api.js'

export type Digest = { readonly sha256: string } | { readonly gitSha1: string }

export function digestOf({ sha256, gitSha1 }: HubFile): Digest {
  return sha256 === undefined ? { gitSha1 } : { sha256 }
}

/** Header that git digests before the content: https://git-scm.com/book/en/v2/Git-Internals-Git-Objects */
export function gitHeader(byteLength: number): string {
  return `blob ${byteLength}\0`
}

export function damage(
  file: { name: string; byteLength: number; digest: Digest | undefined },
  got?: string,
): ErrorDetails {
  const { name, byteLength, digest } = file
  const named =
    digest && ('sha256' in digest ? ` with SHA-256 ${digest.sha256}` : ` with git's SHA-1 ${digest.gitSha1}`)
  return {
    where: name,
    what: 'came damaged, and was dropped',
    expected: `${byteLength} bytes${named ?? ''}`,
    ...(got !== undefined && { got }),
    hint: 'Try again. If it is damaged again, something between you and the server changes it',
  }
}
