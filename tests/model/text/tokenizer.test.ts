import { readFileSync } from 'node:fs'
import fc from 'fast-check'
import { describe, expect, it } from 'vitest'
import { FileError, FormatError, MemoryDirectory } from '../../../src/api/node.js'
import { readJson } from '../../../src/core/base/bytes.js'
import { loadTokenizer, makeTokenizer } from '../../../src/model/text/tokenizer.js'

const folder = new URL('../../../models/union-3m/', import.meta.url)
const json = (path: string) => JSON.parse(readFileSync(new URL(path, folder), 'utf8'))
const definition = json('tokenizer.json')
const config = json('tokenizer_config.json')
const tokenizer = makeTokenizer(definition, config, 'union-3m')

/** The number of bytes of each token. A byte-level vocabulary spells every byte as one character. */
const byteLengths: number[] = []
for (const [token, id] of Object.entries(definition.model.vocab as Record<string, number>)) {
  byteLengths[id] = [...token].length
}

const text = fc.oneof(
  fc.string({ unit: 'grapheme', maxLength: 12 }),
  fc.string({ unit: fc.constantFrom('a', 'the', ' ', 'é', '日', '🐋', 'Whale', '\n', '.', '  ') }),
)

describe('encode and decode', () => {
  it('gives the ids that PyTorch was given', () => {
    for (const { prompt, input_ids } of json('reference.json')) expect(tokenizer.encode(prompt)).toEqual(input_ids)
  })

  it('names the special tokens', () => {
    expect([tokenizer.bosTokenId, tokenizer.eosTokenId, tokenizer.padTokenId]).toEqual([0, 1, 2])
    expect(makeTokenizer(definition, { eos_token: { content: '<|pad|>' } }, 'x').eosTokenId).toBe(2)
    expect(makeTokenizer(definition, {}, 'x').eosTokenId).toBeUndefined()
  })

  it('gives any text back', () => {
    fc.assert(fc.property(text, (value) => void expect(tokenizer.decode(tokenizer.encode(value))).toBe(value)))
  })

  it('leaves special tokens out unless asked', () => {
    expect(tokenizer.encode('A', { specialTokens: false })).toEqual(tokenizer.encode('A').slice(1))
    expect(tokenizer.decode([0, ...tokenizer.encode('A', { specialTokens: false }), 1])).toBe('A')
    expect(tokenizer.decode([0, 1], { specialTokens: true })).toBe('<|bos|><|eos|>')
    expect(tokenizer.decode([])).toBe('')
  })

  it('streams the same text, whole characters only', () => {
    fc.assert(
      fc.property(text, (value) => {
        const stream = tokenizer.stream()
        const parts = tokenizer.encode(value).map((id) => stream.push(id))
        for (const part of parts) expect(part).not.toMatch(/\ufffd/)
        expect(parts.join('') + stream.end()).toBe(value)
      }),
    )
  })

  it('streams what follows other tokens, whatever these end in', () => {
    for (const before of ['', 'a', 'a ', 'In the', 'a\ufffd']) {
      const stream = tokenizer.stream(tokenizer.encode(before))
      const parts = tokenizer.encode(' beginning', { specialTokens: false }).map((id) => stream.push(id))
      expect(parts.join('') + stream.end()).toBe(' beginning')
    }
  })

  it('ends a stream with U+FFFD for bytes that never became a character', () => {
    const stream = tokenizer.stream()
    const [first] = tokenizer.encode('🐋', { specialTokens: false })
    expect(stream.push(first)).toBe('')
    expect(stream.end()).toBe('\ufffd')
    expect(stream.end()).toBe('')
  })
})

describe('encodePair', () => {
  it('encodes one string, and marks the first token that overlaps the completion', () => {
    fc.assert(
      fc.property(text, text, (prompt, completion) => {
        const { ids, completionStart } = tokenizer.encodePair(prompt, completion)
        expect(ids).toEqual(tokenizer.encode(prompt + completion))
        const promptBytes = new TextEncoder().encode(prompt).length
        let end = 0
        let expected = 1
        while (expected < ids.length && end + byteLengths[ids[expected]] <= promptBytes)
          end += byteLengths[ids[expected++]]
        expect(completionStart).toBe(expected)
      }),
      { numRuns: 300 },
    )
  })

  it('counts a token that spans the boundary as completion', () => {
    const { ids, completionStart } = tokenizer.encodePair('And the', 'n')
    expect(tokenizer.decode(ids.slice(completionStart))).toBe(' then')
  })

  it('never leaves out a token of the completion where decoding loses the text', () => {
    const lowercase = makeTokenizer({ ...definition, normalizer: { type: 'Lowercase' } }, config, 'x')
    const { ids, completionStart } = lowercase.encodePair('And THE', 'N he went')
    expect(lowercase.decode(ids.slice(completionStart))).toBe(' then he went')
    expect(lowercase.encodePair('And he ', 'went').completionStart).toBe(lowercase.encode('And he').length)
  })

  it('knows special tokens on both sides', () => {
    const template = structuredClone(definition)
    template.post_processor.single.push({ SpecialToken: { id: '<|eos|>', type_id: 0 } })
    template.post_processor.special_tokens['<|eos|>'] = { id: '<|eos|>', ids: [1], tokens: ['<|eos|>'] }
    const both = makeTokenizer(template, config, 'x')
    const { ids, completionStart } = both.encodePair('Come', ' here')
    expect(both.decode(ids.slice(completionStart), { specialTokens: true })).toBe(' here<|eos|>')
  })
})

describe('bad files', () => {
  const files = { 'tokenizer.json': JSON.stringify(definition), 'tokenizer_config.json': JSON.stringify(config) }
  const load = (changes: Record<string, string>) =>
    loadTokenizer(new MemoryDirectory({ ...files, ...changes }, 'folder'))

  it('opens good ones', async () => {
    expect((await load({})).encode('A')).toEqual(tokenizer.encode('A'))
  })

  it('names the file and the fault', async () => {
    await expect(loadTokenizer(new MemoryDirectory({}, 'folder'))).rejects.toThrow(FileError)
    for (const broken of ['{', '[]', '{}', '{"model": {}, "added_tokens": []}', 'null']) {
      const error = await load({ 'tokenizer.json': broken }).catch((error: unknown) => error)
      expect(error).toBeInstanceOf(FormatError)
      expect((error as Error).message).toContain('folder/tokenizer.json')
    }
    await expect(load({ 'tokenizer_config.json': '3' })).rejects.toThrow('folder/tokenizer_config.json')
    const unknownType = JSON.stringify({ ...definition, decoder: { type: 'Riddle' } })
    await expect(load({ 'tokenizer.json': unknownType })).rejects.toThrow(/Riddle/)
  })

  it('names the file if its decoder is damaged', () => {
    const decoder = { type: 'Replace', pattern: { String: 'a' }, content: { toString: null } }
    let error: unknown
    try {
      const damaged = makeTokenizer({ ...definition, decoder }, {}, 'folder')
      damaged.decode(damaged.encode('a whale'))
    } catch (reason) {
      error = reason
    }
    expect(error).toMatchObject({ code: 'FORMAT', where: 'folder/tokenizer.json' })
  })
})

describe('files of any size and with any numbers', () => {
  const withVocab = (vocab: object, added: unknown = definition.added_tokens) =>
    makeTokenizer({ ...definition, added_tokens: added, model: { ...definition.model, vocab } }, {}, 'model')

  it.each([-1, 1.5, null, '3', Number.NaN, 2 ** 40])('refuses the id %s', (id) => {
    const { vocab } = definition.model
    expect(() => withVocab({ ...vocab, strange: id })).toThrow(/the token "strange" has no id that can be one/)
    expect(() => withVocab(vocab, [...definition.added_tokens, { id, content: '<x>' }])).toThrow(FormatError)
  })

  it.each(['tokenizer.json', 'tokenizer_config.json'])('reads no %s of 600 MB', async (name) => {
    const large = {
      name,
      byteLength: 600_000_000,
      read: () => Promise.reject(new Error('read')),
      close: async () => {},
    }
    const directory = new MemoryDirectory({ 'tokenizer.json': JSON.stringify(definition) }, 'model')
    const open = directory.open.bind(directory)
    const other = Object.assign(directory, {
      has: async (path: string) => path === 'tokenizer.json' || path === name,
      open: async (path: string) => (path === name ? large : open(path)),
    })
    await expect(loadTokenizer(other)).rejects.toThrow(/too large; expected at most 268435456 bytes/)
  })

  it('reads a config with a byte order mark, NaN and Infinity', async () => {
    const config = '\ufeff{"eos_token": "NaN", "x": NaN, "y": [-Infinity, Infinity, "Infinity \\" NaN"]}'
    const directory = new MemoryDirectory({ 'tokenizer_config.json': config })
    expect(await readJson(directory, 'tokenizer_config.json')).toEqual({
      eos_token: 'NaN',
      x: Number.POSITIVE_INFINITY,
      y: [Number.NEGATIVE_INFINITY, Number.POSITIVE_INFINITY, 'Infinity " NaN'],
    })
    await expect(readJson(new MemoryDirectory({ a: '{"x": NaNa}' }), 'a')).rejects.toThrow(FormatError)
  })
})
