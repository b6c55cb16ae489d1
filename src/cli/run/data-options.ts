// Options of commands that read records: which files, under which names their fields are, and how chats become text.

import { readFile } from 'node:fs/promises'
import { FileError } from '../../index.js'

export async function readChatTemplate(file: string | undefined): Promise<string | undefined> {
  return file === undefined ? undefined : readTextFile(file)
}

const UNREADABLE: Readonly<Record<string, string>> = { ENOENT: 'no such file', EISDIR: 'a folder, not a file' }

export async function readTextFile(file: string): Promise<string> {
  try {
    return await readFile(file, 'utf8')
  } catch (cause) {
    throw new FileError({
      where: file,
      what: UNREADABLE[(cause as NodeJS.ErrnoException).code ?? ''] ?? `cannot be read (${(cause as Error).message})`,
      cause,
    })
  }
}
