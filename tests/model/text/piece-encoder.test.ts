import { readFileSync } from 'node:fs'
import * as hub from '@huggingface/tokenizers'
import fc from 'fast-check'
import { describe, expect, it, vi } from 'vitest'
import { PieceEncoder, type PieceModel } from '../../../src/model/text/piece-encoder.js'
import { goldenPath } from '../../golden.js'

type Library = PieceModel & {
  encode(text: string, options: object): { ids: number[] }
  decode(ids: number[], options: object): string
}
const Library = hub.Tokenizer as unknown as new (definition: object, config: object) => Library

const union = JSON.parse(readFileSync('models/union-3m/tokenizer.json', 'utf8'))
const small = JSON.parse(readFileSync(goldenPath('chat', 'sentencepiece.json'), 'utf8'))
const first = (definition: { model: { vocab: object } }) => Object.keys(definition.model.vocab).length
const withAdded = (definition: { model: { vocab: object }; added_tokens: object[] }) => {
  const added = [
    { content: '<|a|>' },
    { content: '<|a|>b' },
    { content: '<mask>', lstrip: true },
    { content: '<end>', rstrip: true },
    { content: 'w' },
  ].map((token, i) => ({
    lstrip: false,
    rstrip: false,
    normalized: false,
    special: true,
    ...token,
    id: first(definition) + i,
  }))
  return { ...definition, added_tokens: [...definition.added_tokens, ...added] }
}
const qwen =
  "(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|\\p{N}| ?[^\\s\\p{L}\\p{N}]+[\\r\\n]*|\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+"
const sequence = (...pretokenizers: object[]) => ({ type: 'Sequence', pretokenizers })
const bytes = (use_regex: boolean) => ({ type: 'ByteLevel', add_prefix_space: false, use_regex, trim_offsets: true })

/** Definitions as in real tokenizer.json files: GPT-2 and Llama 3, SmolLM2, Qwen, Llama 2, Mistral, Gemma. */
const DEFINITIONS: Record<string, object> = {
  'byte-level': union,
  'digits, then byte-level': {
    ...union,
    pre_tokenizer: sequence({ type: 'Digits', individual_digits: true }, bytes(true)),
  },
  'a pattern, and NFC': {
    ...union,
    normalizer: { type: 'NFC' },
    pre_tokenizer: sequence(
      { type: 'Split', pattern: { Regex: qwen }, behavior: 'Isolated', invert: false },
      bytes(false),
    ),
  },
  'a pattern that leaves gaps': {
    ...union,
    pre_tokenizer: sequence(
      { type: 'Split', pattern: { Regex: '\\d*' }, behavior: 'Isolated', invert: false },
      { type: 'Split', pattern: { String: ' ' }, behavior: 'Isolated', invert: false },
      bytes(false),
    ),
  },
  'a space before the text': small,
  'a space before the first text': {
    ...small,
    normalizer: null,
    pre_tokenizer: { type: 'Metaspace', replacement: '▁', prepend_scheme: 'first', split: false },
  },
  'no space before the text': {
    ...small,
    normalizer: { type: 'Replace', pattern: { String: ' ' }, content: '▁' },
    pre_tokenizer: { type: 'Split', pattern: { String: ' ' }, behavior: 'MergedWithPrevious', invert: false },
  },
}

const part = fc.oneof(
  fc.string({ unit: 'binary', maxLength: 5 }),
  fc.constantFrom(
    ' ',
    '  ',
    '\n',
    '\n\n',
    ' the',
    "don't",
    '123',
    ' é🐋日本',
    '...',
    '\t',
    '▁',
    'e\u0301',
    'w',
    'I will',
  ),
  fc.constantFrom('<|a|>', '<|a|>b', '<mask>', '<end>', '<|', '<|eos|>', '</s>'),
)
const text = fc.array(part, { maxLength: 12 }).map((parts) => parts.join(''))

describe.each(Object.entries(DEFINITIONS))('%s', (_, given) => {
  const definition = withAdded(given as typeof union)
  const library = new Library(definition, {})
  const pieces = PieceEncoder.create(definition, library) as PieceEncoder
  const idsOf = (text: string) => library.encode(text, { add_special_tokens: false }).ids

  it('has the library’s ids', () => {
    let told = 0
    fc.assert(
      fc.property(text, (text) => {
        const encoded = pieces.encode(text, [])
        if (encoded === undefined) return
        told++
        expect(encoded.ids).toEqual(idsOf(text))
      }),
      { numRuns: 400 },
    )
    expect(told).toBeGreaterThan(200)
  })

  it('has the same first tokens, and the same places, where no more are needed', () => {
    fc.assert(
      fc.property(text, fc.nat(), fc.integer({ min: 1, max: 4 }), (text, at, enough) => {
        const spans = text === '' ? [] : [{ start: at % text.length, end: text.length }]
        const cut = pieces.encode(text, spans, enough)
        if (cut === undefined) return
        expect(cut.ids.slice(0, enough)).toEqual(idsOf(text).slice(0, enough))
        const first = ({ ranges }: typeof cut) => ranges.map(([first]) => Math.min(first, enough))
        const whole = pieces.encode(text, spans)
        if (whole !== undefined) expect(first(cut)).toEqual(first(whole))
      }),
      { numRuns: 400 },
    )
  })
})

describe('PieceEncoder', () => {
  it('looks at the start of a text if its first tokens are enough', () => {
    const library = new Library(union, {})
    const looked = vi.fn((pieces: string[]) => library.model!(pieces))
    const { normalizer, pre_tokenizer } = library
    const token_to_id = (token: string) => library.token_to_id(token)
    const pieces = PieceEncoder.create(union, { normalizer, pre_tokenizer, model: looked, token_to_id })!
    const words = Array.from({ length: 100_000 }, (_, i) => `${i}`).join(' ')
    expect(pieces.encode(words, [], 20)!.ids.length).toBeLessThan(30)
    expect(looked.mock.calls.length).toBeLessThan(30)
  })

  it('finds the tokens of any stretch: where they are tells their own text', () => {
    const library = new Library(union, {})
    const pieces = PieceEncoder.create(union, library) as PieceEncoder
    const ascii = fc.array(fc.constantFrom(' ', '\n', ' the', 'And', "'s", '12', 'x', '  ', '...'), {
      minLength: 1,
      maxLength: 30,
    })
    fc.assert(
      fc.property(ascii, fc.nat(), fc.nat(), (parts, a, b) => {
        const text = parts.join('')
        const [start, end] = [a % text.length, (b % text.length) + 1].sort((x, y) => x - y)
        if (start === end) return
        const { ids, ranges } = pieces.encode(text, [{ start, end }])!
        let at = 0
        const touched = ids.flatMap((id, i) => {
          const from = at
          at += library.decode([id], { skip_special_tokens: false, clean_up_tokenization_spaces: false }).length
          return from < end && at > start ? [i] : []
        })
        expect(at).toBe(text.length)
        expect(ranges).toEqual([[touched[0], touched.at(-1)! + 1]])
      }),
    )
  })

  it('leaves tokenizers alone that cannot be cut', () => {
    const library = new Library(union, {})
    const create = (part: object) => PieceEncoder.create({ ...union, ...part }, library)
    expect(create({ normalizer: { type: 'Lowercase' } })).toBeUndefined()
    expect(create({ pre_tokenizer: { type: 'Whitespace' } })).toBeUndefined()
    expect(create({ pre_tokenizer: { ...bytes(true), add_prefix_space: true } })).toBeUndefined()
    expect(PieceEncoder.create({ ...small, model: { ...small.model, byte_fallback: false } }, library)).toBeUndefined()
  })
})
