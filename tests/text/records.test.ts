import { readFileSync } from 'node:fs'
import { describe, expect, it } from 'vitest'
import { type ByteSource, MemorySource } from '../../src/base/bytes.js'
import { ConfigError, DataError, FormatError, MismatchError } from '../../src/base/errors.js'
import { countTargets, encodeRecord, encodeRecords, loadRecords, type TextRecord } from '../../src/text/records.js'
import { makeTokenizer } from '../../src/text/tokenizer.js'

const folder = new URL('../../models/union-3m/', import.meta.url)
const json = (path: string) => JSON.parse(readFileSync(new URL(path, folder), 'utf8'))
const definition = json('tokenizer.json')
const tokenizer = makeTokenizer(definition, json('tokenizer_config.json'), 'union-3m')
const EOS = 1

const load = (content: string | Uint8Array) =>
  loadRecords(new MemorySource(typeof content === 'string' ? new TextEncoder().encode(content) : content, 'data.jsonl'))

describe('loadRecords', () => {
  it('reads both kinds, skips empty lines, ignores other fields', async () => {
    const lines = ['{"text": "a", "id": 3}', '', '{"prompt": "p", "completion": "c"}\r', '   ', '{"text": "é🐋"}']
    expect(await load(lines.join('\n'))).toEqual([{ text: 'a' }, { prompt: 'p', completion: 'c' }, { text: 'é🐋' }])
    expect(await load(`\ufeff${lines.join('\n')}\n`)).toHaveLength(3)
  })

  it('joins characters and lines across reads', async () => {
    const lines = Array.from({ length: 40_000 }, (_, i) => JSON.stringify({ text: `${i} 🐋é日` }))
    const bytes = new TextEncoder().encode(lines.join('\n'))
    expect(bytes.length).toBeGreaterThan(1 << 20)
    const records = (await load(bytes)) as { text: string }[]
    expect(records.map(({ text }) => text)).toEqual(lines.map((line) => JSON.parse(line).text))
  })

  it.each([
    ['{"text": "a"}\n{"text": \n{"text": "b"}', 'data.jsonl, line 2: not valid JSON'],
    ['{"text": "a"}\n\n[1]', 'data.jsonl, line 3: not a record'],
    ['[{"text": "a"}]', 'got a list. Each line is one JSON object'],
    ['{"txt": "a"}', 'got "txt" (string)'],
    ['{"text": 3}', 'got "text" (number)'],
    ['{"prompt": "a"}', 'line 1: not a record; expected "text", or "prompt" and "completion"'],
    ['{"text": "a", "prompt": "b", "completion": "c"}', 'not a record'],
    ['null', 'not a record'],
    ['{"messages": [{"role": "user", "content": "a"}]}', 'got "messages" (object). Write a conversation as'],
    ['{"instruction": "a", "output": "b"}', 'Name what is given "prompt"'],
    ['"text"', 'got a string'],
    ['{}', 'got no fields'],
    ['', 'data.jsonl: it holds no records'],
    ['\n \n', 'it holds no records'],
  ])('%j is refused', async (content, message) => {
    const error = await load(content).catch((error: unknown) => error)
    expect(error).toBeInstanceOf(DataError)
    expect((error as Error).message).toContain(message)
  })

  it('refuses bytes that are no UTF-8', async () => {
    await expect(load(Uint8Array.of(0x7b, 0xff, 0x7d))).rejects.toThrow(DataError)
    await expect(load(Uint8Array.of(0x22, 0xe2, 0x82))).rejects.toThrow('not valid UTF-8')
  })

  it('reads each byte once', async () => {
    const bytes = new TextEncoder().encode('{"text": "a"}\n'.repeat(200_000))
    let read = 0
    const source: ByteSource = new MemorySource(bytes)
    const counting = { ...source, name: 'x', byteLength: bytes.length, close: async () => {} } as ByteSource
    counting.read = (offset, byteLength) => {
      read += byteLength
      return source.read(offset, byteLength)
    }
    expect(await loadRecords(counting)).toHaveLength(200_000)
    expect(read).toBe(bytes.length)
  })
})

describe('encodeRecord', () => {
  const targets = ({ inputIds, labels }: ReturnType<typeof encodeRecord>) => {
    expect(labels.length).toBe(inputIds.length)
    labels.forEach((label, i) => void expect([inputIds[i], -100]).toContain(label))
    return [...labels].filter((label) => label !== -100)
  }

  it('learns every token of a text but the first, and one eos', () => {
    const example = encodeRecord({ text: 'In the beginning' }, tokenizer, EOS)
    const ids = tokenizer.encode('In the beginning')
    expect([...example.inputIds]).toEqual([...ids, EOS])
    expect(targets(example)).toEqual([...ids.slice(1), EOS])
    expect(countTargets(example.labels)).toBe(ids.length)
  })

  it('learns the completion only', () => {
    const example = encodeRecord({ prompt: 'In the', completion: ' beginning' }, tokenizer, EOS)
    expect([...example.inputIds]).toEqual([...tokenizer.encode('In the beginning'), EOS])
    expect(tokenizer.decode(targets(example))).toBe(' beginning')
    expect(targets(example).at(-1)).toBe(EOS)
    expect(targets(encodeRecord({ prompt: 'In the', completion: '' }, tokenizer, EOS))).toEqual([EOS])
  })

  it('does not double an eos that the template or the text has', () => {
    const template = structuredClone(definition)
    template.post_processor.single.push({ SpecialToken: { id: '<|eos|>', type_id: 0 } })
    template.post_processor.special_tokens['<|eos|>'] = { id: '<|eos|>', ids: [1], tokens: ['<|eos|>'] }
    const ending = makeTokenizer(template, {}, 'x')
    const records: TextRecord[] = [{ text: 'Amen' }, { text: 'Amen<|eos|>' }, { prompt: 'A', completion: 'men' }]
    for (const record of records) {
      const expected = [...tokenizer.encode('Amen'), EOS]
      expect([...encodeRecord(record, ending, EOS).inputIds]).toEqual(expected)
      expect([...encodeRecord(record, tokenizer, EOS).inputIds]).toEqual(expected)
      expect(targets(encodeRecord(record, ending, EOS)).at(-1)).toBe(EOS)
    }
  })
})

describe('encodeRecords', () => {
  const options = { tokenizer, eosTokenId: EOS, contextLength: 256, name: 'data.jsonl' }
  const long = 'the '.repeat(300)

  it('cuts on the right and counts', async () => {
    const records = [{ text: 'In the beginning' }, { text: long }, { prompt: long, completion: 'end' }]
    const { examples, truncatedRecords, skippedRecords } = await encodeRecords(records, options)
    expect(examples.map(({ inputIds }) => inputIds.length)).toEqual([
      tokenizer.encode('In the beginning').length + 1,
      256,
    ])
    expect([truncatedRecords, skippedRecords]).toEqual([2, 1])
    expect([...examples[1].inputIds]).toEqual(tokenizer.encode(long).slice(0, 256))
  })

  it('keeps records of exactly the limit whole', async () => {
    const length = tokenizer.encode('In the beginning').length + 1
    const fits = await encodeRecords([{ text: 'In the beginning' }], { ...options, maxLength: length })
    expect(fits.truncatedRecords).toBe(0)
    const cut = await encodeRecords([{ text: 'In the beginning' }], { ...options, maxLength: length - 1 })
    expect(cut.truncatedRecords).toBe(1)
  })

  it('refuses limits that the model cannot have', async () => {
    for (const maxLength of [257, 1, 0, -3, 2.5, Number.NaN]) {
      await expect(encodeRecords([{ text: 'a' }], { ...options, maxLength })).rejects.toThrow(ConfigError)
    }
    await expect(encodeRecords([{ text: 'a' }], { ...options, maxLength: 257 })).rejects.toThrow('at most 256, got 257')
  })

  it('refuses tokens that the model has not', async () => {
    await expect(encodeRecords([{ text: 'a' }], { ...options, vocabularySize: 2048 })).resolves.toBeDefined()
    const error = await encodeRecords([{ text: 'a' }], { ...options, vocabularySize: 60 }).catch(
      (error: unknown) => error,
    )
    expect(error).toBeInstanceOf(MismatchError)
  })

  it('refuses data without targets, and models without an eos', async () => {
    await expect(encodeRecords([], options)).rejects.toThrow(DataError)
    await expect(encodeRecords([{ prompt: long, completion: 'x' }], options)).rejects.toThrow(/maxLength 256/)
    await expect(encodeRecords([{ text: 'a' }], { ...options, eosTokenId: undefined })).rejects.toThrow(FormatError)
  })
})
