import { afterAll, beforeAll, describe, expect, it } from 'vitest'
import {
  ConfigError,
  DataError,
  type GenerateOptions,
  loadAdapter,
  MismatchError,
  type Model,
  StateError,
} from '../../src/api/node.js'
import { readJson } from '../../src/core/base/bytes.js'
import { generate } from '../../src/run/generate/generate.js'
import { ModelSession } from '../../src/run/model-session.js'
import { directoryOf, inThread, makeAdapter, messageHost, openModel } from './models.js'

const UNION = 'models/union-3m'
const PROMPT = 'The Constitution of the United States'

interface Reference {
  prompt: string
  input_ids: number[]
  greedy_ids: number[]
  greedy_text: string
}

let union: Model
let session: ModelSession<Model>
let references: Reference[]
beforeAll(async () => {
  // Its generation_config.json asks for sampling, but most of these tests take the likeliest token.
  union = { ...(await openModel(UNION)), generationConfig: {} }
  session = await ModelSession.open(union, { adapters: { v: makeAdapter(union, /v_proj$/, { std: 0.3 }) } })
  references = (await readJson(directoryOf(UNION), 'reference.json')) as Reference[]
})
afterAll(async () => {
  await session.dispose()
  await union.close()
})

describe('greedy', () => {
  it.each([0, 1, 2])('gives the reference’s tokens and text for prompt %i', async (i) => {
    const { prompt, greedy_ids, greedy_text } = references[i]
    const result = await generate(session, prompt, { maxNewTokens: 20 })
    expect(result.tokenIds).toEqual(greedy_ids)
    expect(result.text).toBe(greedy_text)
    expect(result).toMatchObject({ tokens: 20, finish: 'max-new-tokens' })
    expect(result.seconds).toBeGreaterThan(0)
  })

  // GroupQueryAttention with a cache, a cache fed to plain operators, and no cache: the same tokens.
  it.each([
    'llama-optimum',
    'llama-genai',
    'llama-genai-rotary',
    'llama-dynamo',
    'qwen2-optimum',
    'gpt2-optimum',
    'merged-if',
  ])('%s: gives PEFT’s tokens with and without the adapter', async (name) => {
    const path = `tests/golden/models/${name}`
    const model = await openModel(path)
    const golden = (await readJson(directoryOf(path), 'golden/golden.json')) as Record<
      'base' | 'adapted',
      { inputIds: number[]; greedyIds: number[] }
    >
    const adapter = await loadAdapter(directoryOf(`${path}/golden/adapter-init`))
    const opened = await ModelSession.open(model, { adapters: { adapter } })
    const text = model.tokenizer!.decode(golden.base.inputIds)
    expect(model.tokenizer!.encode(text)).toEqual(golden.base.inputIds)
    for (const [key, choice] of [['base'], ['adapted', 'adapter'], ['base']] as const) {
      const { greedyIds } = golden[key]
      const { tokenIds } = await generate(opened, text, { adapter: choice, maxNewTokens: greedyIds.length })
      expect(tokenIds, key).toEqual(greedyIds)
    }
    await opened.dispose()
    await model.close()
  })
})

describe('sampling', () => {
  const sample = async (options: GenerateOptions) =>
    (await generate(session, PROMPT, { temperature: 1, maxNewTokens: 12, ...options })).tokenIds

  it('the same seed gives the same text, another seed another, and none a fresh one that the result tells', async () => {
    const first = await sample({ seed: 7 })
    expect(await sample({ seed: 7 })).toEqual(first)
    expect(await sample({ seed: 8 })).not.toEqual(first)
    const texts = await Promise.all([1, 2].map(() => session.generate(PROMPT, { temperature: 1, maxNewTokens: 12 })))
    expect(texts[0].seed).not.toBe(texts[1].seed)
    expect(texts[0].tokenIds).not.toEqual(texts[1].tokenIds)
    expect(await sample({ seed: texts[0].seed })).toEqual(texts[0].tokenIds)
  })

  it('top-k 1 and a tiny top-p are greedy, whatever the temperature', async () => {
    const greedy = references[0].greedy_ids.slice(0, 12)
    expect(await sample({ topK: 1, temperature: 3 })).toEqual(greedy)
    expect(await sample({ topP: 1e-9, temperature: 0.5 })).toEqual(greedy)
  })

  it('an adapter changes the text, and the base is back afterwards', async () => {
    const greedy = { temperature: 0 }
    expect(await sample({ ...greedy, adapter: 'v' })).not.toEqual(references[0].greedy_ids.slice(0, 12))
    expect(await sample(greedy)).toEqual(references[0].greedy_ids.slice(0, 12))
  })
})

describe('the end of the text', () => {
  const withModel = (changes: Partial<Model>) => ModelSession.open({ ...union, ...changes })

  it('comes with a token that ends it, which is not part of it', async () => {
    const { greedy_ids } = references[0]
    const ending = await withModel({ eosTokenIds: [1, greedy_ids[6]] })
    const result = await generate(ending, PROMPT)
    expect(result).toMatchObject({ tokenIds: greedy_ids.slice(0, 6), tokens: 6, finish: 'eos' })
    expect(result.text).toBe(union.tokenizer!.decode(greedy_ids.slice(0, 6)))
    await ending.dispose()
  })

  it('comes when the context is full', async () => {
    const short = await withModel({ contextLength: 8 + 5 })
    expect(await generate(short, PROMPT)).toMatchObject({ tokens: 5, finish: 'context' })
    await short.dispose()
  })

  it('comes at the model’s own context of 256 tokens', async () => {
    const prompt = 'people '.repeat(240)
    const length = union.tokenizer!.encode(prompt).length
    expect(length).toBeGreaterThan(230)
    expect(await generate(session, prompt)).toMatchObject({ tokens: 256 - length, finish: 'context' })
  })

  it('a template that ends every text does not end the prompt', async () => {
    const tokenizer = union.tokenizer!
    const templated = await withModel({
      tokenizer: {
        name: tokenizer.name,
        eosTokenId: 1,
        bosTokenId: 0,
        padTokenId: 2,
        tokenId: () => undefined,
        encode: (text, options) => [
          ...tokenizer.encode(text, options),
          ...(options?.specialTokens === false ? [] : [1]),
        ],
        encodePair: (a, b) => tokenizer.encodePair(a, b),
        encodeSpans: (text, spans) => tokenizer.encodeSpans(text, spans),
        encodeTexts: (a, b, limit) => tokenizer.encodeTexts(a, b, limit),
        decode: (ids, options) => tokenizer.decode(ids, options),
        stream: (after) => tokenizer.stream(after),
        vocabulary: () => undefined,
        decoderFiles: () => tokenizer.decoderFiles(),
      },
    })
    const { tokenIds } = await generate(templated, PROMPT, { maxNewTokens: 5 })
    expect(tokenIds).toEqual(references[0].greedy_ids.slice(0, 5))
    await templated.dispose()
  })
})

describe('streaming', () => {
  it('gives the text in pieces', async () => {
    const pieces: string[] = []
    const { text } = await generate(session, PROMPT, { maxNewTokens: 20, on: { text: (piece) => pieces.push(piece) } })
    expect(pieces.join('')).toBe(text)
    expect(pieces.length).toBeGreaterThan(10)
    expect(pieces).not.toContain('')
  })

  it('holds back a character until all its bytes are there, and gives U+FFFD for one that never is', async () => {
    const model = await openModel('tests/golden/models/gpt2-optimum')
    const opened = await ModelSession.open(model)
    const pieces: string[] = []
    const { text } = await generate(opened, PROMPT, { maxNewTokens: 14, on: { text: (piece) => pieces.push(piece) } })
    expect(pieces.join('')).toBe(text)
    expect(text).toContain('\ufffd')
    await opened.dispose()
    await model.close()
  })

  it('gives nothing of the prompt, even where that ends in U+FFFD', async () => {
    const pieces: string[] = []
    const prompt = `${PROMPT}\ufffd`
    const { text, tokenIds } = await generate(session, prompt, {
      maxNewTokens: 5,
      on: { text: (piece) => pieces.push(piece) },
    })
    const whole = union.tokenizer!.decode([...union.tokenizer!.encode(prompt), ...tokenIds])
    expect(prompt + text).toBe(whole)
    expect(pieces.join('')).toBe(text)
  })

  it('ends between two tokens when the signal says so, and the session goes on', async () => {
    const controller = new AbortController()
    let pieces = 0
    const stopped = generate(session, PROMPT, {
      signal: controller.signal,
      on: {
        text: () => {
          if (++pieces === 3) controller.abort(new Error('enough'))
        },
      },
    })
    await expect(stopped).rejects.toThrow('enough')
    expect(pieces).toBe(3)
    expect((await generate(session, PROMPT, { maxNewTokens: 3 })).tokenIds).toEqual(
      references[0].greedy_ids.slice(0, 3),
    )
  })
})

describe('texts beside one another', () => {
  it('in a worker, several grow at once, each with its own adapter, seed and cache', async () => {
    const path = 'tests/golden/models/llama-genai'
    const [here, there] = [await openModel(path, inThread), await openModel(path, messageHost().host)]
    const a = makeAdapter(here, /q_proj$/, { seed: 1, std: 0.5 })
    const b = makeAdapter(here, /down_proj$/, { seed: 2, std: 0.5 })
    const local = await ModelSession.open(here, { adapters: { a, b } })
    const remote = await ModelSession.open(there, { adapters: { a, b } })
    const requests: GenerateOptions[] = [
      { adapter: 'a' },
      { adapter: 'b', temperature: 1, seed: 2 },
      { temperature: 1, seed: 3 },
      {},
    ].map((options) => ({ ...options, maxNewTokens: 10 }))
    const together = await Promise.all(requests.map((options) => generate(remote, PROMPT, options)))
    for (const [i, options] of requests.entries()) {
      expect(together[i].tokenIds).toEqual((await generate(local, PROMPT, options)).tokenIds)
    }
    await local.dispose()
    await remote.dispose()
    await here.close()
    await there.close()
  })

  it('an adapter that is removed meanwhile stays with its text', async () => {
    const v = makeAdapter(union, /v_proj$/, { std: 0.3 })
    const opened = await ModelSession.open(union, { adapters: { v } })
    const whole = await generate(opened, PROMPT, { adapter: 'v', maxNewTokens: 10 })
    let removal: Promise<void> | undefined
    const result = await generate(opened, PROMPT, {
      adapter: 'v',
      maxNewTokens: 10,
      on: {
        text: () => {
          // The new adapter changes other modules, so the session opens the graph again while the text runs.
          removal ??= opened.remove('v').then(() => opened.add('q', makeAdapter(union, /q_proj$/)))
        },
      },
    })
    await removal
    expect(result.tokenIds).toEqual(whole.tokenIds)
    expect(opened.adapters).toEqual(['q'])
    await opened.dispose()
  })
})

describe('a session that is disposed meanwhile', () => {
  it.each([
    ['this thread', inThread],
    ['a worker', messageHost().host],
  ])('in %s ends the text with a StateError', async (_, host) => {
    const model = await openModel('tests/golden/models/llama-genai', host)
    const opened = await ModelSession.open(model)
    let disposal: Promise<void> | undefined
    const onText = () => {
      disposal ??= opened.dispose()
    }
    const error = await generate(opened, PROMPT, { on: { text: onText } }).catch((error: unknown) => error)
    expect(error).toBeInstanceOf(StateError)
    expect((error as Error).message).toMatch('the session is closed')
    await disposal
    await model.close()
  })
})

describe('bad input', () => {
  it.each<[GenerateOptions, new (...args: never[]) => Error, RegExp]>([
    [{ temperature: -1 }, ConfigError, /^temperature/],
    [{ topK: 0 }, ConfigError, /^topK/],
    [{ topP: 2 }, ConfigError, /^topP/],
    [{ maxNewTokens: 0 }, ConfigError, /^maxNewTokens/],
    [{ maxNewTokens: 1.5 }, ConfigError, /^maxNewTokens/],
    [{ seed: 0.5 }, ConfigError, /^seed/],
    [{ adapter: 'x' }, MismatchError, /no adapter "x"/],
  ])('%j', async (options, kind, message) => {
    const error = await generate(session, PROMPT, options).catch((error: unknown) => error)
    expect(error).toBeInstanceOf(kind)
    expect((error as Error).message).toMatch(message)
  })

  it('a prompt that fills the context, or that has no tokens', async () => {
    const long = generate(session, 'people '.repeat(300))
    await expect(long).rejects.toMatchObject({ code: 'CONTEXT', expected: 'a prompt of at most 255' })
    const bare = { ...union.tokenizer!, encode: () => [], stream: () => union.tokenizer!.stream() } as never
    const opened = await ModelSession.open({ ...union, tokenizer: bare })
    await expect(generate(opened, '')).rejects.toThrow(DataError)
    await opened.dispose()
  })

  it('a prompt of tokens that the model has not', async () => {
    const opened = await ModelSession.open({ ...union, vocabularySize: 50 })
    await expect(generate(opened, PROMPT)).rejects.toThrow(
      /tokenizer is not that of the model; expected token ids below 50/,
    )
    await opened.dispose()
  })

  it('an empty prompt begins with the tokenizer’s own first token', async () => {
    expect((await generate(session, '', { maxNewTokens: 4 })).tokens).toBe(4)
  })
})
