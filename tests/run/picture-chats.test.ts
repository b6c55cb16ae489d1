// Chats with places for pictures in the different forms of templates, and the input vectors of a step.

import * as ort from 'onnxruntime-node'
import { afterAll, beforeAll, describe, expect, it } from 'vitest'
import { loadModel, type Model, type RuntimeTensor } from '../../src/api/node.js'
import { f16ToF32, f32ToF16 } from '../../src/core/base/dtype.js'
import { type PictureVectors, PromptPictures } from '../../src/model/pictures/pictures.js'
import { readGraph } from '../../src/onnx/view/graph.js'
import { encodePrompt } from '../../src/run/generate/prompts.js'
import type { RunningText } from '../../src/run/generate/running-text.js'
import { embeddingForm } from '../../src/run/generate/side-graphs.js'
import { TokenVectors } from '../../src/run/generate/token-vectors.js'
import type { GraphEngine } from '../../src/run/graph-engine.js'
import { ModelSession } from '../../src/run/model-session.js'
import { pictureGolden } from '../picture-texts.js'
import { graphsFolder } from '../several-graphs.js'

const open = (name: string) => loadModel(graphsFolder(name), { runtime: { module: ort } })

describe('chats', () => {
  const { cases, picture } = pictureGolden('llava')
  const [{ images, base }] = cases.filter((one) => one.messages !== undefined && one.images.length > 0)
  const options = { temperature: 0, maxNewTokens: 8, images: images.map(picture) }
  let session: ModelSession<Model>
  beforeAll(async () => {
    session = await ModelSession.open(await open('llava'), {}, true)
  })
  afterAll(() => session?.dispose())

  it('without a place, pictures go before the last question', async () => {
    const { tokenIds } = await session.generate([{ role: 'user', content: 'What is this' }], options)
    expect(tokenIds).toEqual(base.ids)
  })

  it('a template of texts gets the token of a picture, and a line of its own', async () => {
    const turn = "{{ '<|im_start|>' + m['role'] + ' ' + m['content'] + '<|im_end|>' }}"
    const chatTemplate = `{% for m in messages %}${turn}{% endfor %}{{ '<|im_start|>assistant\\n' }}`
    // In this form, the chat equals the golden chat.
    const { tokenIds } = await session.generate([{ role: 'user', content: 'What is this' }], {
      ...options,
      chatTemplate,
    })
    expect(tokenIds).toEqual(base.ids)
  })

  it('pieces of one text come one by one', async () => {
    const pieces = []
    const texts = session.stream([{ role: 'user', content: 'What is this' }], options)
    for await (const piece of texts) pieces.push(piece)
    expect(pieces.join('')).toBe(session.model.tokenizer!.decode(base.ids))
  })

  it('parts that are neither text nor a picture are refused', async () => {
    const content = [{ type: 'video' }] as never
    await expect(session.generate([{ role: 'user', content }], options)).rejects.toThrow(
      /message 1: content that is no/,
    )
  })

  it.each([
    ['llava', '<|im_end|>'],
    ['idefics3', '<end_of_utterance>'],
    ['qwen2-vl', '<|im_end|>'],
  ])('an answer of %s ends with %s', async (name, end) => {
    const model = await open(name)
    const none = { model, decodeImage: undefined, see: async () => ({}) }
    const pictures = new PromptPictures(none, [], 'prompt')
    const context = { recorded: undefined, pictures, where: 'prompt' }
    const { endIds } = await encodePrompt(model, [{ role: 'user', content: 'Who' }], {}, context)
    expect(endIds.map((id) => model.tokenizer!.decode([id], { specialTokens: true }))).toEqual([end])
    await model.close()
  })
})

describe('vectors of a step', () => {
  const width = 2
  const pictures = { token: 9, data: Float32Array.of(7, 8), count: 1, width, grids: [] }
  const textOf = (promptIds: number[], pictures?: PictureVectors) => {
    return { request: { promptIds, pictures, mix: [] }, tokens: [...promptIds] } as unknown as RunningText
  }
  const textsOf = () => [textOf([1, 9, 3], pictures), textOf([4])]

  /** An embedding in which a token t has the vector [t, t/2]. */
  const embedding = {
    factorsOf: (mixes: readonly unknown[]) => mixes.map(() => []),
    async run({ input_ids: { data, dims } }: Record<string, RuntimeTensor>) {
      const values = Float32Array.from(Array.from(data, Number).flatMap((id) => [id, id / 2]))
      return { inputs_embeds: { type: 'float16', data: f32ToF16(values), dims: [...dims, width] } }
    },
  } as unknown as GraphEngine

  const formOf = async (type: 'float16' | 'float32') => {
    const model = await open('llava')
    const form = await embeddingForm(model, readGraph(model.onnx))
    await model.close()
    return { ...form, fed: [{ name: 'inputs_embeds', type }], padTokenId: 0 }
  }

  it.each([
    ['left', [1, 0.5, 7, 8, 3, 1.5, 0, 0, 0, 0, 4, 2]],
    ['right', [1, 0.5, 7, 8, 3, 1.5, 4, 2, 0, 0, 0, 0]],
  ] as const)('filled up on the %s, in half precision where the decoder takes it', async (padding, expected) => {
    const texts = textsOf()
    const vectors = new TokenVectors(await formOf('float16'), embedding, texts, padding)
    const { inputs_embeds: first } = await vectors.feeds()
    expect(first).toMatchObject({ type: 'float16', dims: [2, 3, width] })
    expect(Array.from(f16ToF32(first.data as Uint16Array))).toEqual(expected)
    const write = (ids: number[]) => ids.map((id, i) => texts[i].tokens.push(id))
    write([9, 6])
    expect(Array.from(f16ToF32((await vectors.feeds()).inputs_embeds.data as Uint16Array))).toEqual([9, 4.5, 6, 3])
    write([2, 1])
    vectors.drop([texts[0]])
    expect((await vectors.feeds()).inputs_embeds.dims).toEqual([1, 1, width])
  })

  it('in single precision where the decoder takes that', async () => {
    const vectors = new TokenVectors(await formOf('float32'), embedding, textsOf().slice(1), 'left')
    expect((await vectors.feeds()).inputs_embeds).toEqual({
      type: 'float32',
      data: Float32Array.of(4, 2),
      dims: [1, 1, width],
    })
  })

  it('of another width than those of a picture are refused', async () => {
    const wide = { ...pictures, data: new Float32Array(3), width: 3 }
    const vectors = new TokenVectors(await formOf('float32'), embedding, [textOf([1, 9, 3], wide)], 'left')
    await expect(vectors.feeds()).rejects.toThrow(
      /vision_encoder: its vectors do not have the width of token vectors.*expected 2, got 3/,
    )
  })
})
