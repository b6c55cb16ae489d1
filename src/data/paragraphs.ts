// Plain text files: each paragraph is a record {"text"}. Not each line, because people break lines in a paragraph, and
// not the file, because all beyond the model's context would be lost.

import type { ByteSource } from '../base/bytes.js'
import type { Row } from './row.js'
import { checkLength, textLines } from './text-chunks.js'

/**
 * The paragraphs of a text file: lines between empty ones. Line breaks inside a paragraph stay.
 *
 * @throws DataError naming the line when it is not UTF-8
 */
export async function* readParagraphs(source: ByteSource): AsyncGenerator<Row> {
  let lines: string[] = []
  let length = 0
  let first = 1
  const record = (): Row => {
    const row = { text: lines.join('\n') }
    lines = []
    length = 0
    return { row, where: `${source.name}, line ${first}` }
  }
  for await (const { text, number } of textLines(source)) {
    if (text.trim() === '') {
      if (lines.length > 0) yield record()
      continue
    }
    if (lines.length === 0) first = number
    lines.push(text)
    length += text.length
    checkLength(length, `${source.name}, line ${first}`)
  }
  if (lines.length > 0) yield record()
}
