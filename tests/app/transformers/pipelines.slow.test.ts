// Pipelines of transformers.js with adapters, compared with PEFT's tokens and with transformers.js on the merged model.

import { cpSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { basename, dirname, join, resolve } from 'node:path'
import { setFlagsFromString } from 'node:v8'
import { runInNewContext } from 'node:vm'
import { afterAll, describe, expect, it } from 'vitest'
import {
  loadAdapter,
  loadModel,
  MismatchError,
  merge,
  openSession,
  StateError,
  saveAdapter,
  UnsupportedError,
} from '../../../src/api/node.js'
import { pipelineWithAdapters } from '../../../src/app/transformers/node/entry.js'
import { readJson } from '../../../src/core/base/bytes.js'
import { NodeDirectory } from '../../../src/files/io/node/files.js'
import { TensorProto_DataType as DataType, NodeProtoSchema } from '../../../src/onnx/format/gen/onnx_pb.js'
import { copyMessage } from '../../../src/onnx/format/messages.js'
import { create } from '../../../src/onnx/format/protobuf.js'
import { valueInfo } from '../../../src/onnx/view/value-info.js'
import { rawTensor, weights } from '../../onnx/format/onnx-models.js'
import { writeOnnx } from '../../onnx/format/write-onnx.js'
import { directoryOf, makeAdapter, openModel } from '../../run/models.js'
import { expectedGraphs, graphsFolder } from '../../several-graphs.js'
import { ort, transformers } from './installed.js'

const UNION = 'models/union-3m'
const ADAPTER = 'tests/golden/peft/rslora'
const OTHER = 'tests/golden/peft/f32'
const ENCODER = 'tests/golden/text-classification/encoder'
const PROMPTS = ['And the people', 'The Constitution of the United States', 'The']
const GREEDY = { max_new_tokens: 16, do_sample: false, return_full_text: false }

const scratch = mkdtempSync(join(tmpdir(), 'lowrank-tjs-'))
afterAll(() => rmSync(scratch, { recursive: true, force: true }))

/** Opens a plain pipeline of transformers.js for a folder. */
function plain(task: string, folder: string) {
  transformers.env.localModelPath = dirname(resolve(folder))
  return transformers.pipeline(task, basename(folder), { dtype: 'fp32' })
}

const textOf = ([{ generated_text: text }]: { generated_text: string }[]) => text

describe.skipIf(transformers === undefined)('pipelines with adapters', () => {
  it('writes what transformers.js writes with each adapter merged, also at the same time, in batches and in mixes', async () => {
    const expected: Record<string, string[]> = {}
    for (const [name, adapters] of [
      ['a', ADAPTER],
      ['b', OTHER],
      [
        'mix',
        [
          { adapter: ADAPTER, weight: 0.5 },
          { adapter: OTHER, weight: 0.25 },
        ],
      ],
    ] as const) {
      const out = join(scratch, name)
      await merge({ base: `${UNION}/onnx/model.onnx`, adapters: adapters as never, out, threads: 1 })
      transformers.env.localModelPath = scratch
      const merged = await transformers.pipeline('text-generation', name, { dtype: 'fp32' })
      expected[name] = []
      for (const prompt of PROMPTS) expected[name].push(textOf(await merged(prompt, GREEDY)))
      await merged.dispose()
    }
    expect(expected.a).not.toEqual(expected.b)
    const write = await pipelineWithAdapters('text-generation', UNION, {
      adapters: { a: ADAPTER, b: OTHER },
      transformers,
    })
    const choices = { a: 'a', b: 'b', mix: { a: 0.5, b: 0.25 } } as const
    const together = await Promise.all(
      Object.values(choices).map((adapter) => Promise.all(PROMPTS.map((text) => write(text, { ...GREEDY, adapter })))),
    )
    expect(Object.fromEntries(Object.keys(choices).map((name, i) => [name, together[i].map(textOf)]))).toEqual(expected)
    const rows = await write(PROMPTS, { ...GREEDY, adapter: ['a', 'b', choices.mix] })
    expect(rows.map(textOf)).toEqual([expected.a[0], expected.b[1], expected.mix[2]])
    const pieces: string[] = []
    const streamer = new transformers.TextStreamer(write.tokenizer, {
      skip_prompt: true,
      callback_function: (piece: string) => pieces.push(piece),
    })
    await write(PROMPTS[0], { ...GREEDY, adapter: 'a', streamer })
    expect(pieces.length).toBeGreaterThan(3)
    expect(pieces.join('')).toBe(expected.a[0])
    // biome-ignore lint/suspicious/noExplicitAny: transformers.js's own
    const { model, tokenizer } = write as any
    const inputs = tokenizer(PROMPTS[0])
    const { max_new_tokens, do_sample } = GREEDY
    const ids = await model.generate({ ...inputs, max_new_tokens, do_sample, adapter: 'a' })
    const [whole] = tokenizer.batch_decode(ids, { skip_special_tokens: true })
    expect(whole.endsWith(expected.a[0])).toBe(true)
    const [plainLogits, adapted] = [await model(inputs), await model({ ...inputs, adapter: 'a' })]
    expect(Array.from(adapted.logits.data)).not.toEqual(Array.from(plainLogits.logits.data))
    await expect(write('The', { adpater: 'a' })).rejects.toThrow(/Did you mean adapter/)
    await expect(write('The', { adapter: 'c' })).rejects.toThrow(MismatchError)
    await write.session.remove('b')
    await expect(write('The', { adapter: 'b' })).rejects.toThrow(/no adapter "b"/)
    await write.dispose()
    await expect(write('The', { adapter: 'a' })).rejects.toThrow(StateError)
  })

  // Rows are padded on the left, and the graph counts keys from the left.
  it.each(['llama-genai', 'llama-genai-rotary', 'llama-optimum'])(
    '%s: gives PEFT’s tokens, in a batch too',
    async (name) => {
      const path = `tests/golden/models/${name}`
      const golden = (await readJson(directoryOf(path), 'golden/golden.json')) as Record<
        'base' | 'adapted',
        { inputIds: number[]; greedyIds: number[] }
      >
      const adapters = { adapter: `${path}/golden/adapter-init` }
      const write = await pipelineWithAdapters('text-generation', path, { adapters, transformers })
      // biome-ignore lint/suspicious/noExplicitAny: transformers.js's own
      const tokenizer = write.tokenizer as any
      for (const [key, adapter] of [
        ['base', null],
        ['adapted', 'adapter'],
      ] as const) {
        const { inputIds, greedyIds } = golden[key]
        const prompt = tokenizer.decode(inputIds)
        const options = { ...GREEDY, max_new_tokens: greedyIds.length, adapter, add_special_tokens: false }
        const expected = tokenizer.decode(greedyIds, { skip_special_tokens: true })
        expect(textOf(await write(prompt, options))).toBe(expected)
        const longer = `${prompt} and the people of the United States${prompt}`
        const [[first], [second]] = await write([prompt, longer], options)
        expect(first.generated_text).toBe(expected)
        expect(second.generated_text).toBe(textOf(await write(longer, options)))
      }
      await write.dispose()
    },
  )

  it.each(['llama-fp16', 'llama-q4', 'llama-q8'])(
    '%s: writes what transformers.js and sessions write',
    async (name) => {
      const path = `tests/golden/models/${name}`
      const theirs = await plain('text-generation', path)
      const expected = textOf(await theirs(PROMPTS[0], GREEDY))
      await theirs.dispose()
      const model = await loadModel(path, { runtime: { module: ort } })
      const adapters = { a: makeAdapter(model, /(q|v|down)_proj$/, { std: 0.5 }) }
      const session = await openSession(model, { adapters })
      const sampling = { temperature: 0, maxNewTokens: GREEDY.max_new_tokens, adapter: 'a' }
      const { tokenIds } = await session.generate(PROMPTS[0], sampling)
      await session.dispose()
      await model.close()
      const write = await pipelineWithAdapters('text-generation', path, { adapters, transformers })
      const options = { ...GREEDY, add_special_tokens: true }
      expect(textOf(await write(PROMPTS[0], GREEDY))).toBe(expected)
      // biome-ignore lint/suspicious/noExplicitAny: transformers.js's own
      const adapted = (write.tokenizer as any).decode(tokenIds, { skip_special_tokens: true })
      expect(textOf(await write(PROMPTS[0], { ...options, adapter: 'a' }))).toBe(adapted)
      expect(adapted).not.toBe(expected)
      await write.dispose()
    },
  )

  it('gives features as transformers.js gives them on the merged encoder', async () => {
    const model = await openModel(ENCODER)
    const adapter = makeAdapter(model, /query|value/, { std: 0.5 })
    await model.close()
    const folder = join(scratch, 'features')
    await saveAdapter(adapter, folder)
    const out = join(scratch, 'features-merged')
    await merge({ base: `${ENCODER}/onnx/model.onnx`, adapters: adapter, out, threads: 1 })
    transformers.env.localModelPath = scratch
    const merged = await transformers.pipeline('feature-extraction', 'features-merged', { dtype: 'fp32' })
    const base = await plain('feature-extraction', ENCODER)
    const embed = await pipelineWithAdapters('feature-extraction', ENCODER, { adapters: { a: folder }, transformers })
    const texts = ['The sea was calm.', 'a']
    for (const [theirs, choice] of [
      [merged, 'a'],
      [base, null],
    ] as const) {
      const expected = await theirs(texts, { pooling: 'mean', normalize: true })
      const found = await embed(texts, { pooling: 'mean', normalize: true, adapter: choice })
      expect(found.dims).toEqual(expected.dims)
      for (const [i, value] of Array.from(found.data).entries()) expect(value).toBeCloseTo(expected.data[i], 5)
    }
    for (const pipe of [merged, base, embed]) await pipe.dispose()
  })

  it('goes on from caches that calls fill, with each adapter, as transformers.js does on the merged model', async () => {
    const adapters = { a: ADAPTER, b: OTHER }
    const write = await pipelineWithAdapters('text-generation', UNION, { adapters, transformers })
    /** Writes a text that outgrows its first cache arrays, and continues its cache in two ways at the same time. */
    const texts = async (pipe: typeof write, choice: object) => {
      const options = { ...choice, do_sample: false, return_full_text: true }
      const cache = new transformers.DynamicCache()
      const start = textOf(await pipe(PROMPTS[0], { ...options, max_new_tokens: 70, past_key_values: cache }))
      const goOn = async (text: string) => {
        const past_key_values = new transformers.DynamicCache({ ...cache })
        return textOf(await pipe(start + text, { ...options, max_new_tokens: 8, past_key_values }))
      }
      const more = await Promise.all([goOn(' of the king and'), goOn(' is')])
      const { dims, data } = cache['past_key_values.1.value']
      return { texts: [start, ...more, await goOn(' of the king and')], dims, data: Array.from(data as Float32Array) }
    }
    const found = await Promise.all(Object.keys(adapters).map((adapter) => texts(write, { adapter })))
    for (const [i, adapter] of Object.values(adapters).entries()) {
      const out = join(scratch, `cache-${i}`)
      await merge({ base: `${UNION}/onnx/model.onnx`, adapters: adapter, out, threads: 1 })
      const merged = await plain('text-generation', out)
      const expected = await texts(merged, {})
      expect(found[i].texts).toEqual(expected.texts)
      expect(found[i].dims).toEqual(expected.dims)
      for (const [j, value] of found[i].data.entries()) expect(value).toBeCloseTo(expected.data[j], 3)
      await merged.dispose()
    }
    expect(found[0].texts).not.toEqual(found[1].texts)
    await write.dispose()
  })

  it('keeps nothing of texts that are over', async () => {
    const write = await pipelineWithAdapters('text-generation', UNION, { adapters: { a: ADAPTER }, transformers })
    setFlagsFromString('--expose-gc')
    const collect = runInNewContext('gc') as () => void
    const held = async () => {
      for (let i = 0; i < 3; i++) {
        collect()
        await new Promise((done) => setTimeout(done, 20))
      }
      const { arrayBuffers, heapUsed } = process.memoryUsage()
      return { arrayBuffers, heapUsed }
    }
    const some = async (count: number) => {
      for (let i = 0; i < count; i++) await write(PROMPTS[i % 3], { ...GREEDY, adapter: i % 2 === 0 ? 'a' : null })
    }
    await some(10)
    const before = await held()
    await some(50)
    const after = await held()
    // The cache of a text has 12 tensors of 16 kB.
    expect(after.arrayBuffers - before.arrayBuffers).toBeLessThan(200_000)
    expect(after.heapUsed - before.heapUsed).toBeLessThan(4_000_000)
    await write.dispose()
  })

  it('refuses an adapter of another model', async () => {
    const wrong = 'tests/golden/models/llama-genai/golden/adapter-init'
    const opening = pipelineWithAdapters('text-generation', UNION, { adapters: { wrong }, transformers })
    await expect(opening).rejects.toThrow(MismatchError)
  })

  it('gives labels by the head of the adapter, and says where there is none', async () => {
    const mood = `${ENCODER}/golden/adapter-init`
    const label = await pipelineWithAdapters('text-classification', ENCODER, { adapters: { mood }, transformers })
    await expect(label('a')).rejects.toThrow(/neither the model nor the adapter has a head/)
    const [best] = await label('The sea was calm.', { adapter: 'mood' })
    expect(Object.keys(best)).toEqual(['label', 'score'])
    await label.dispose()
  })

  it('refuses what it can not do', async () => {
    const open = (task: string, options = {}) =>
      pipelineWithAdapters(task as never, UNION, { transformers, ...options })
    await expect(open('text-clasification')).rejects.toThrow(UnsupportedError)
    await expect(open('text-classification')).rejects.toThrow(UnsupportedError)
    await expect(open('text-generation', { adaptor: {} })).rejects.toThrow(/Did you mean adapters/)
    const old = { ...transformers, env: { ...transformers.env, version: '3.8.1' } }
    await expect(open('text-generation', { transformers: old })).rejects.toThrow(/4\.3 or later, got 3\.8\.1/)
    const versions = { node: '1.20.0' }
    const other = { ...transformers, env: { ...transformers.env, backends: { onnx: { versions } } } }
    await expect(open('text-generation', { transformers: other })).rejects.toThrow(
      /the copy that transformers\.js uses is not found\. Import @huggingface\/transformers as a package/,
    )
  })
})

describe.skipIf(transformers === undefined)('pipelines of further tasks', () => {
  it.each(['bart', 't5'])(
    '%s: text2text-generation gives PEFT’s tokens, from an encoder and its decoder',
    async (name) => {
      const folder = graphsFolder(name)
      const { text, baseIds, adaptedIds } = expectedGraphs(name)
      const adapters = { own: join(folder, 'golden', 'adapter') }
      for (const task of ['text2text-generation', 'summarization', 'translation'] as const) {
        const pipe = await pipelineWithAdapters(task, folder, { adapters, transformers })
        // biome-ignore lint/suspicious/noExplicitAny: transformers.js's own
        const tokenizer = pipe.tokenizer as any
        for (const [adapter, ids] of [
          [null, baseIds],
          ['own', adaptedIds],
        ] as const) {
          const [answer] = await pipe(text, { adapter, max_new_tokens: ids.length, do_sample: false })
          const expected = tokenizer.decode(ids, { skip_special_tokens: true }).trim()
          expect(Object.values(answer)[0].trim()).toBe(expected)
        }
        await pipe.dispose()
      }
      const wrong = pipelineWithAdapters('text-generation', folder, { transformers })
      await expect(wrong).rejects.toThrow(/no graphs for text-generation/)
    },
  )

  it('image-to-text: writes what transformers.js writes with the adapter merged, from an encoder of pictures', async () => {
    const vit = 'tests/golden/image-classification/vit'
    const whisper = graphsFolder('whisper')
    /** Makes a folder like an exported VisionEncoderDecoderModel: a ViT, and a decoder that attends to it. */
    const compose = (name: string, encoder: string) => {
      const folder = join(scratch, name)
      cpSync(whisper, folder, { recursive: true })
      cpSync(encoder, join(folder, 'onnx', 'encoder_model.onnx'))
      // Folders on the Hub have this file, but lowrank does not read it.
      writeFileSync(join(folder, 'onnx', 'decoder_with_past_model.onnx'), '')
      cpSync(join(vit, 'preprocessor_config.json'), join(folder, 'preprocessor_config.json'))
      for (const file of ['tokenizer.json', 'tokenizer_config.json'])
        cpSync(join(graphsFolder('bart'), file), join(folder, file))
      const [encoderConfig, decoder] = [vit, whisper].map((one) =>
        JSON.parse(readFileSync(join(one, 'config.json'), 'utf8')),
      )
      const config = { ...decoder, model_type: 'vision-encoder-decoder', encoder: encoderConfig, decoder }
      writeFileSync(join(folder, 'config.json'), JSON.stringify(config))
      return folder
    }
    const model = await openModel(vit)
    const a = makeAdapter(model, /query|value|dense/, { std: 0.5 })
    await model.close()
    const out = join(scratch, 'vit-merged')
    await merge({ base: `${vit}/onnx/model.onnx`, adapters: a, out, threads: 1 })
    const folder = compose('captions', `${vit}/onnx/model.onnx`)
    const merged = compose('captions-merged', join(out, 'onnx', 'model.onnx'))
    const options = { max_new_tokens: 8, do_sample: false }
    const picture = 'tests/golden/image-classification/picture.png'
    const caption = await pipelineWithAdapters('image-to-text', folder, { adapters: { a }, transformers })
    const texts: string[] = []
    for (const [path, adapter] of [
      [folder, null],
      [merged, 'a'],
    ] as const) {
      const theirs = await plain('image-to-text', path)
      texts.push(textOf(await theirs(picture, options)))
      await theirs.dispose()
      expect(textOf(await caption(picture, { ...options, adapter }))).toBe(texts.at(-1))
    }
    expect(texts[0]).not.toBe(texts[1])
    await caption.dispose()
  })

  it('chooses labels that a call gives, by the entailment of an adapter’s head', async () => {
    const adapter = await loadAdapter(`${ENCODER}/golden/adapter-init`)
    adapter.labels = ['contradiction', 'entailment', 'neutral']
    const choose = await pipelineWithAdapters('zero-shot-classification', ENCODER, {
      adapters: { adapter },
      transformers,
    })
    const text = 'The sea was calm.'
    const labels = ['sea', 'land']
    const { sequence, labels: found, scores } = await choose(text, labels, { adapter: 'adapter' })
    expect([sequence, [...found].sort(), scores[0] + scores[1]]).toEqual([
      text,
      [...labels].sort(),
      expect.closeTo(1, 5),
    ])
    const label = await pipelineWithAdapters('text-classification', ENCODER, { adapters: { adapter }, transformers })
    // biome-ignore lint/suspicious/noExplicitAny: transformers.js's own
    const { model, tokenizer } = label as any
    const entailments = labels.map(async (one) => {
      const inputs = tokenizer([text], { text_pair: [`This example is ${one}.`] })
      return (await model({ ...inputs, adapter: 'adapter' })).logits.data[1] as number
    })
    const [a, b] = await Promise.all(entailments)
    expect(found[0]).toBe(labels[a > b ? 0 : 1])
    expect(scores[0]).toBeCloseTo(1 / (1 + Math.exp(-Math.abs(a - b))), 4)
    await choose.dispose()
    await label.dispose()
  })

  it('fills masks as transformers.js does on the merged model', async () => {
    const folder = join(scratch, 'masked')
    const encoder = await openModel(ENCODER)
    const graph = copyMessage(encoder.onnx.proto.graph!)
    const [states] = graph.output
    const head = { opType: 'MatMul', name: '/cls/decoder/MatMul', input: [states.name, 'cls.decoder.weight'] }
    graph.node = [...graph.node, create(NodeProtoSchema, { ...head, output: ['logits'] })]
    graph.initializer = [...graph.initializer, rawTensor('cls.decoder.weight', weights(16 * 84, 1), [16, 84])]
    graph.output = [valueInfo('logits', DataType.FLOAT, ['batch', 'sequence', 84])]
    await writeOnnx(
      encoder.onnx,
      copyMessage(encoder.onnx.proto, { graph }),
      new NodeDirectory(folder),
      'onnx/model.onnx',
    )
    for (const file of ['config.json', 'tokenizer.json', 'tokenizer_config.json']) {
      cpSync(join(ENCODER, file), join(folder, file))
    }
    await encoder.close()
    const model = await loadModel(folder)
    const adapters = { a: makeAdapter(model, /query|value/, { std: 0.5 }) }
    const out = join(scratch, 'masked-merged')
    await merge({ base: folder, adapters: adapters.a, out, threads: 1 })
    await model.close()
    const fill = await pipelineWithAdapters('fill-mask', folder, { adapters, transformers })
    const text = 'the sea [MASK] calm'
    for (const [theirs, adapter] of [
      [await plain('fill-mask', out), 'a'],
      [await plain('fill-mask', folder), null],
    ] as const) {
      const expected = await theirs(text)
      const found = await fill(text, { adapter })
      expect(found.map(({ token }) => token)).toEqual(expected.map(({ token }: { token: number }) => token))
      for (const [i, { score }] of found.entries()) expect(score).toBeCloseTo(expected[i].score, 5)
      await theirs.dispose()
    }
    await fill.dispose()
  })

  it('takes the processor for auto where no other device starts', async () => {
    const write = await pipelineWithAdapters('text-generation', UNION, { device: 'auto', transformers })
    expect(textOf(await write(PROMPTS[0], GREEDY))).not.toBe('')
    await write.dispose()
  })
})
