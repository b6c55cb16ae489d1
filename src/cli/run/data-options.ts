// Options of commands that read records: which files, under which names their fields are, and how chats become text.

import { readFile } from 'node:fs/promises'
import { FileError } from '../../index.js'

/** The text of the template that was named. Throws FileError when it cannot be read. */
export async function readChatTemplate(file: string | undefined): Promise<string | undefined> {
  return file === undefined ? undefined : readTextFile(file)
}

/** A file that an option names, as text. Throws FileError when it cannot be read. */
export async function readTextFile(file: string): Promise<string> {
  try {
    return await readFile(file, 'utf8')
  } catch (cause) {
    const isMissing = (cause as NodeJS.ErrnoException).code === 'ENOENT'
    throw new FileError({
      where: file,
      what: isMissing ? 'no such file' : `cannot be read (${(cause as Error).message})`,
      cause,
    })
  }
}
