import { readFileSync } from 'node:fs'
import { describe, expect, it } from 'vitest'
import { DataError } from '../../src/base/errors.js'
import { checkRecord, countTargets, encodeRecord, type TextRecord } from '../../src/text/records.js'
import { makeTokenizer } from '../../src/text/tokenizer.js'

const folder = new URL('../../models/union-3m/', import.meta.url)
const json = (path: string) => JSON.parse(readFileSync(new URL(path, folder), 'utf8'))
const definition = json('tokenizer.json')
const tokenizer = makeTokenizer(definition, json('tokenizer_config.json'), 'union-3m')
const EOS = 1

describe('checkRecord', () => {
  it('takes both kinds, and ignores other fields', () => {
    expect(checkRecord({ text: 'a', id: 3 }, 'here')).toEqual({ text: 'a' })
    expect(checkRecord({ prompt: 'p', completion: 'c' }, 'here')).toEqual({ prompt: 'p', completion: 'c' })
  })

  it.each([
    [[1], 'here: not a record'],
    [[{ text: 'a' }], 'got a list. Each line is one JSON object'],
    [{ txt: 'a' }, 'got "txt" (string)'],
    [{ text: 3 }, 'got "text" (number)'],
    [{ prompt: 'a' }, 'here: not a record; expected "text", or "prompt" and "completion"'],
    [{ text: 'a', prompt: 'b', completion: 'c' }, 'not a record'],
    [null, 'not a record'],
    [{ messages: [{ role: 'user', content: 'a' }] }, 'got "messages" (object). Write a conversation as'],
    [{ instruction: 'a', output: 'b' }, 'Name what is given "prompt"'],
    ['text', 'got a string'],
    [{}, 'got no fields'],
  ])('%j is refused', (value, message) => {
    const check = () => checkRecord(value, 'here')
    expect(check).toThrow(DataError)
    expect(check).toThrow(message)
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
