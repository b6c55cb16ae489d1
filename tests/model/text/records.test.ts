import { readFileSync } from 'node:fs'
import fc from 'fast-check'
import { describe, expect, it } from 'vitest'
import { DataError } from '../../../src/api/node.js'
import { countTargets, encodeText, parseRecord } from '../../../src/model/text/records.js'
import { makeTokenizer } from '../../../src/model/text/tokenizer.js'

const folder = new URL('../../../models/union-3m/', import.meta.url)
const json = (path: string) => JSON.parse(readFileSync(new URL(path, folder), 'utf8'))
const definition = json('tokenizer.json')
const tokenizer = makeTokenizer(definition, json('tokenizer_config.json'), 'union-3m')
const EOS = 1

describe('parseRecord', () => {
  const where = 'here'

  it('takes each kind, and leaves other fields alone', () => {
    expect(parseRecord({ text: 'a', id: 3 }, where)).toEqual({ where, kind: 'text', text: 'a' })
    expect(parseRecord({ text: 'a', prompt: null, messages: null }, where)).toEqual({ where, kind: 'text', text: 'a' })
    const pair = { where, kind: 'pair', prompt: 'p', completion: 'c' }
    expect(parseRecord({ prompt: 'p', completion: 'c' }, where)).toEqual(pair)
    const messages = [
      { role: 'user', content: 'u' },
      { role: 'assistant', content: 'a' },
    ]
    const chat = { messages, learnFrom: 0, tools: undefined, args: undefined }
    expect(parseRecord({ messages, prompt_id: '3', prompt: 'u' }, where)).toEqual({ where, kind: 'chat', chat })
    const conversations = [
      { from: 'human', value: 'u' },
      { from: 'gpt', value: 'a' },
    ]
    expect(parseRecord({ conversations }, where)).toEqual({ where, kind: 'chat', chat })
    const trl = { prompt: messages.slice(0, 1), completion: messages.slice(1) }
    expect(parseRecord(trl, where)).toEqual({ where, kind: 'chat', chat: { ...chat, learnFrom: 1 } })
  })

  it('takes questions and instructions', () => {
    const answer = { where, kind: 'answer', question: 'q', answer: 'a', system: undefined }
    expect(parseRecord({ question: 'q', answer: 'a' }, where)).toEqual(answer)
    expect(parseRecord({ instruction: 'q', input: '', output: 'a' }, where)).toEqual(answer)
    expect(parseRecord({ instruction: 'q', output: 'a', system: 's' }, where)).toEqual({ ...answer, system: 's' })
    const withInput = parseRecord({ instruction: 'q', input: 'i', output: 'a' }, where)
    expect(withInput).toEqual({ ...answer, question: 'q\n\ni' })
  })

  it.each([
    [[1], 'here: not a valid record'],
    [[{ text: 'a' }], 'got a list. Each record is one JSON object'],
    [{ txt: 'a' }, 'got "txt" (string). If your fields have other names, use `columns: {'],
    [{ text: 3 }, '"text" is not text; expected a string, got 3'],
    [{ prompt: 'a' }, 'here: not a valid record; expected "text"; "prompt" and "completion"; "messages"'],
    [{ prompt: 'a', completion: 3 }, 'here: "completion" is not text'],
    [{ question: 'a', answer: 3 }, 'here: "answer" is not text'],
    [{ text: 'a', prompt: 'b', completion: 'c' }, 'here: the record has fields of two kinds of records'],
    [{ text: 'a', prompt: 'b' }, 'the record has fields of two kinds of records'],
    [{ instruction: 'a', output: 'b', text: 'c' }, "Say which fields to use, as in `columns: { text: 'text' }`"],
    [null, 'not a valid record'],
    [{ messages: [{ role: 'user' }] }, 'here, message 1: no content'],
    ['text', 'got a string'],
    [{}, 'got no fields'],
  ])('%j is refused', (value, message) => {
    const check = () => parseRecord(value, where)
    expect(check).toThrow(DataError)
    expect(check).toThrow(message)
  })
})

describe('encodeText', () => {
  const targets = ({ inputIds, labels }: ReturnType<typeof encodeText>) => {
    expect(labels.length).toBe(inputIds.length)
    labels.forEach((label, i) => void expect([inputIds[i], -100]).toContain(label))
    return [...labels].filter((label) => label !== -100)
  }

  it('learns every token of a text but the first, and one eos', () => {
    const example = encodeText('', 'In the beginning', tokenizer, EOS)
    const ids = tokenizer.encode('In the beginning')
    expect([...example.inputIds]).toEqual([...ids, EOS])
    expect(targets(example)).toEqual([...ids.slice(1), EOS])
    expect(countTargets(example.labels)).toBe(ids.length)
  })

  it('learns the completion only', () => {
    const example = encodeText('In the', ' beginning', tokenizer, EOS)
    expect([...example.inputIds]).toEqual([...tokenizer.encode('In the beginning'), EOS])
    expect(tokenizer.decode(targets(example))).toBe(' beginning')
    expect(targets(example).at(-1)).toBe(EOS)
    expect(targets(encodeText('In the', '', tokenizer, EOS))).toEqual([EOS])
  })

  it('does not double an eos that the template or the text has', () => {
    const template = structuredClone(definition)
    template.post_processor.single.push({ SpecialToken: { id: '<|eos|>', type_id: 0 } })
    template.post_processor.special_tokens['<|eos|>'] = { id: '<|eos|>', ids: [1], tokens: ['<|eos|>'] }
    const ending = makeTokenizer(template, {}, 'x')
    const pairs = [
      ['', 'Amen'],
      ['', 'Amen<|eos|>'],
      ['A', 'men'],
    ]
    for (const [prompt, completion] of pairs) {
      const expected = [...tokenizer.encode('Amen'), EOS]
      expect([...encodeText(prompt, completion, ending, EOS).inputIds]).toEqual(expected)
      expect([...encodeText(prompt, completion, tokenizer, EOS).inputIds]).toEqual(expected)
      expect(targets(encodeText(prompt, completion, ending, EOS)).at(-1)).toBe(EOS)
    }
  })
  it('gives the same tokens and labels to be cut, of texts that are read no further', () => {
    const word = fc.constantFrom('In', ' the', ' beginning', '<|eos|>', ' <|eos|><|eos|><|eos|>', '\n', ' God created')
    const words = fc.array(word, { maxLength: 40 }).map((all) => all.join(''))
    fc.assert(
      fc.property(words, words, fc.integer({ min: 1, max: 12 }), (prompt, completion, most) => {
        const whole = encodeText(prompt, completion, tokenizer, EOS)
        const start = encodeText(prompt, completion, tokenizer, EOS, most)
        expect(start.inputIds.slice(0, most)).toEqual(whole.inputIds.slice(0, most))
        expect(start.labels.slice(0, most)).toEqual(whole.labels.slice(0, most))
        expect(start.inputIds.length > most).toBe(whole.inputIds.length > most)
        const { ids, isTruncated } = tokenizer.encodeTexts(completion, undefined, most)
        const all = tokenizer.encode(completion)
        expect([ids, isTruncated]).toEqual([all.slice(0, most), all.length > most])
      }),
    )
  })

  it('encodes texts of more tokens than a call takes arguments', () => {
    const text = ' the'.repeat(200_000)
    const { ids, typeIds, isTruncated, kept } = tokenizer.encodeTexts(text, 'a', 500_000)
    expect(ids.length).toBeGreaterThan(200_000)
    expect([typeIds.length, isTruncated, kept]).toEqual([ids.length, false, 200_000])
  })
})
