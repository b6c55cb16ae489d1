// Cuts long documents into parts at sentences, so that no part is longer than a model reads.

/** Sizes of parts, in tokens. */
export interface ChunkSettings {
  /**
   * Cuts documents into parts of at most this many tokens, at the ends of sentences. A document counts as its best
   * part. Default: they stay whole, and the model reads their beginning.
   * @range an integer of at least 8
   */
  readonly chunk?: number | undefined
  /**
   * Tokens at the end of a part with which the next one begins again, as far as whole sentences allow.
   * @range an integer of at least 0
   * @default 0
   */
  readonly overlap?: number | undefined
}

/** @param tokensOf the number of tokens of a text */
export function chunksOf(
  text: string,
  tokensOf: (text: string) => number,
  { chunk, overlap = 0 }: ChunkSettings,
): string[] {
  if (chunk === undefined || tokensOf(text) <= chunk) return [text]
  const sentences = [...new Intl.Segmenter(undefined, { granularity: 'sentence' }).segment(text)]
  const pieces = sentences.flatMap(({ segment }) => piecesOf(segment, tokensOf, chunk))
  const parts: string[] = []
  const part: string[] = []
  for (const piece of pieces) {
    if (part.length > 0 && tokensOf([...part, piece].join('')) > chunk) {
      parts.push(part.join('').trim())
      while (part.length > 0 && (tokensOf(part.join('')) > overlap || tokensOf([...part, piece].join('')) > chunk)) {
        part.shift()
      }
    }
    part.push(piece)
  }
  return [...parts, part.join('').trim()].filter((text) => text !== '')
}

/** A sentence that is too long is cut between words, in halves. */
function piecesOf(sentence: string, tokensOf: (text: string) => number, most: number): string[] {
  if (tokensOf(sentence) <= most) return [sentence]
  const words = sentence.split(/(?<=\s)(?=\S)/)
  const [first, second] =
    words.length > 1
      ? [words.slice(0, words.length >> 1), words.slice(words.length >> 1)]
      : [[...sentence].slice(0, sentence.length >> 1), [...sentence].slice(sentence.length >> 1)]
  return [first, second].flatMap((part) => piecesOf(part.join(''), tokensOf, most))
}
