// Words of texts and their first tokens, for tokenizers of each kind.

import { describe, expect, it } from 'vitest'
import { NodeDirectory } from '../../../src/files/io/node/files.js'
import { loadTokenizer } from '../../../src/model/text/tokenizer.js'
import { encodeWords, joinWords, wordsIn } from '../../../src/model/text/words.js'

const textsIn = (text: string) => wordsIn(text).map(({ start, end }) => text.slice(start, end))

describe('words', () => {
  it.each([
    ['The Red Sea.', ['The', 'Red', 'Sea', '.']],
    ["don't (stop)", ['don', "'", 't', '(', 'stop', ')']],
    ['snake_case 3.5 é́', ['snake_case', '3', '.', '5', 'é́']],
    ['東京タワー2 go', ['東', '京', 'タ', 'ワ', 'ー', '2', 'go']],
    ['a🐋b', ['a', '🐋', 'b']],
    ['  \n', []],
    ['', []],
  ])('of %j', (text, words) => {
    expect(textsIn(text)).toEqual(words)
  })

  it('that are joined keep their places', () => {
    const { text, spans } = joinWords(['New York', '', 'x'])
    expect(text).toBe('New York  x')
    expect(spans.map(({ start, end }) => text.slice(start, end))).toEqual(['New York', '', 'x'])
  })
})

describe.each(['tests/golden/text-classification/encoder', 'models/union-3m'])('the tokenizer of %s', (folder) => {
  it('begins each word with the token that its text begins with', async () => {
    const tokenizer = await loadTokenizer(new NodeDirectory(folder))
    const text = 'The king, Ahab! of the ship? saw whales.  And Nantucket'
    const words = wordsIn(text)
    const { ids, firsts, start, kept } = encodeWords(tokenizer, text, words, Number.POSITIVE_INFINITY)
    expect(kept).toBe(tokenizer.encode(text, { specialTokens: false }).length)
    expect(firsts[0]).toBe(start)
    firsts.forEach((first, i) => {
      // Each word has its first token after that of the word before.
      expect(first).toBeGreaterThan(i === 0 ? -1 : firsts[i - 1])
      const own = tokenizer
        .decode(ids.slice(first, firsts[i + 1]))
        .replaceAll('#', '')
        .replaceAll(' ', '')
      expect(own.toLowerCase()).toBe(text.slice(words[i].start, words[i].end).toLowerCase())
    })
  })

  it('tells words that are cut off, and words inside of one token', async () => {
    const tokenizer = await loadTokenizer(new NodeDirectory(folder))
    const text = 'the king and the ship'
    const whole = encodeWords(tokenizer, text, wordsIn(text), Number.POSITIVE_INFINITY)
    const cut = encodeWords(tokenizer, text, wordsIn(text), whole.ids.length - 1)
    expect(cut.isTruncated).toBe(true)
    expect(cut.firsts.slice(0, 3)).toEqual(whole.firsts.slice(0, 3))
    const inside = [0, 1, 2].map((at) => ({ start: at, end: at + 1 }))
    const { firsts } = encodeWords(tokenizer, 'the', inside, 9)
    expect(firsts[0]).toBeGreaterThanOrEqual(0)
    expect(firsts.slice(1)).toEqual([-1, -1])
  })
})
