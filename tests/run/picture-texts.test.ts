// Texts about pictures, with graphs like those of published folders, equal those of transformers and PEFT.

import { readFileSync } from 'node:fs'
import path from 'node:path'
import * as ort from 'onnxruntime-node'
import { afterAll, beforeAll, describe, expect, it } from 'vitest'
import {
  type GenerateResult,
  loadAdapter,
  loadModel,
  type Model,
  type Prompt,
  type RgbImage,
} from '../../src/api/node.js'
import { NodeDirectory } from '../../src/files/io/node/files.js'
import { ModelSession } from '../../src/run/model-session.js'
import { type Continued, pictureGolden } from '../picture-texts.js'
import { graphsFolder } from '../several-graphs.js'

const FAMILIES = ['llava', 'idefics3', 'qwen2-vl']

const open = (name: string) => loadModel(graphsFolder(name), { runtime: { module: ort } })

async function openSession(name: string) {
  const model = await open(name)
  const own = await loadAdapter(`${graphsFolder(name)}/golden/adapter`)
  return ModelSession.open(model, { adapters: { own }, allowMissing: true }, true)
}

/** Returns the largest difference of log-probabilities. */
function worst({ logprobs = [] }: GenerateResult, truth: Continued): number {
  return Math.max(...truth.logprobs.map((logprob, i) => Math.abs(logprob - (logprobs[i]?.logprob ?? Number.NaN))))
}

describe.each(FAMILIES)('texts of %s', (name) => {
  const { cases, picture } = pictureGolden(name)
  const greedy = { temperature: 0, maxNewTokens: 8, logprobs: 0 }

  it('are those of transformers and PEFT, one prompt at a time', async () => {
    const session = await openSession(name)
    for (const { prompt, messages, images, base, adapted } of cases) {
      for (const [adapter, truth] of [
        [null, base],
        ['own', adapted],
      ] as const) {
        const result = await session.generate((prompt ?? messages) as string, {
          ...greedy,
          adapter,
          images: images.map(picture),
        })
        expect(result.tokenIds, `${prompt ?? 'chat'} with ${adapter}`).toEqual(truth.ids)
        expect(worst(result, truth)).toBeLessThan(1e-4)
      }
    }
    // The cache of a prompt with pictures is not used again, however long the prompt is.
    const { prompt, images } = cases.find((one) => one.images.length === 2)!
    for (const _ of [1, 2]) {
      const { cachedTokens } = await session.generate(prompt!, { ...greedy, images: images.map(picture) })
      expect(cachedTokens).toBe(0)
    }
    await session.dispose()
  })

  it('are the same in a batch with an adapter for each row', async () => {
    const session = await openSession(name)
    const rows = cases.flatMap((one) => [
      { ...one, adapter: null, truth: one.base },
      { ...one, adapter: 'own', truth: one.adapted },
    ])
    const results = await session.generate(
      rows.map(({ prompt, messages }) => (prompt ?? messages)!),
      {
        ...greedy,
        adapter: rows.map(({ adapter }) => adapter),
        images: rows.map(({ images }) => images.map(picture)),
      },
    )
    results.forEach((result, i) => {
      expect(result.tokenIds).toEqual(rows[i].truth.ids)
      expect(worst(result, rows[i].truth)).toBeLessThan(1e-4)
    })
    await session.dispose()
  })
})

describe.each(FAMILIES)('texts that transformers.js writes with %s', (name) => {
  it('are the same, with an adapter those of the model that PEFT merged', async () => {
    const file = path.join(graphsFolder(name), 'golden', 'transformers-js.json')
    const { settings, maxNewTokens, cases } = JSON.parse(readFileSync(file, 'utf8'))
    const { picture } = pictureGolden(name)
    const model = await open(name)
    const changed = { ...model, preprocessorConfig: { ...model.preprocessorConfig, ...settings } }
    const own = await loadAdapter(`${graphsFolder(name)}/golden/adapter`)
    const session = await ModelSession.open(changed, { adapters: { own }, allowMissing: true }, true)
    for (const { prompt, images, base, merged } of cases) {
      for (const [adapter, truth] of [
        [null, base],
        ['own', merged],
      ]) {
        const options = { temperature: 0, maxNewTokens, adapter, images: images.map(picture) }
        const { tokenIds } = await session.generate(prompt, options)
        expect(tokenIds, `${prompt} with ${adapter}`).toEqual(truth)
      }
    }
    await session.dispose()
  })
})

describe('what cannot be done is refused by name', () => {
  const square = pictureGolden('llava').picture('square')

  /** A folder without some of its files. */
  class Without extends NodeDirectory {
    constructor(
      folder: string,
      readonly missing: string,
    ) {
      super(folder)
    }
    override async has(file: string): Promise<boolean> {
      return !file.endsWith(this.missing) && super.has(file)
    }
    override async list(): Promise<string[]> {
      return (await super.list()).filter((file) => !file.endsWith(this.missing))
    }
  }

  const openFolder = async (folder: NodeDirectory) => {
    const model = await loadModel(folder, { runtime: { module: ort } })
    return ModelSession.open(model, {}, true)
  }
  const refusalIn = async (session: ModelSession<Model>, prompt: Prompt | readonly Prompt[], images?: unknown) => {
    try {
      await session.generate(prompt as string, { maxNewTokens: 1, images: images as RgbImage })
      return 'no error'
    } catch (error) {
      return String(error)
    }
  }
  const refusalOf = async (folder: NodeDirectory, prompt: Prompt, images?: unknown) => {
    const session = await openFolder(folder)
    const refusal = await refusalIn(session, prompt, images)
    await session.dispose()
    return refusal
  }
  const llava = graphsFolder('llava')

  it.each([
    ['embed_tokens.onnx', /no embed_tokens.onnx in this folder, which gives the vectors that the decoder reads/],
    ['vision_encoder.onnx', /no vision_encoder.onnx in this folder, which pictures need/],
    ['decoder_model_merged.onnx', /no decoder_model_merged.onnx in this folder, which writes the text/],
    ['preprocessor_config.json', /no preprocessor_config.json in this folder, which pictures need/],
  ])('a folder without %s', async (file, message) => {
    expect(await refusalOf(new Without(llava, file), '<image> And', square)).toMatch(message)
  })

  it('without what pictures need, texts work', async () => {
    for (const file of ['vision_encoder.onnx', 'preprocessor_config.json'])
      expect(await refusalOf(new Without(llava, file), 'And the people')).toBe('no error')
  })

  let whole: ModelSession<Model>
  beforeAll(async () => {
    whole = await openFolder(new NodeDirectory(llava))
  })
  afterAll(() => whole?.dispose())

  it.each([
    ['no place', 'And the people', square, /expected <image> once, for one picture, got 0 times/],
    ['too many places', '<image> And <image>', square, /expected <image> once, for one picture, got 2 times/],
    ['a place without a picture', '<image> And', undefined, /expected <image> 0 times, for 0 pictures, got once/],
    ['a list of lists', '<image> And', [[square]], /images: not as many as prompts.*got a list of lists/s],
    ['one picture for several prompts', ['<image> a', '<image> b'], square, /not as many as prompts.*got one picture/s],
    ['fewer than prompts', ['<image> a', '<image> b'], [square], /not as many as prompts.*got a list of 1/s],
    ['no picture at all', '<image> And', 3, /images: .*a picture/s],
    ['a broken picture', '<image> And', { data: [1], width: 2, height: 2 }, /image 1: not a picture/],
    ['a file, where nothing reads files', '<image> And', 'cat.png', /image 1, cat.png: nothing here reads files/],
  ] as [string, Prompt | Prompt[], unknown, RegExp][])('%s', async (_, prompt, images, message) => {
    expect(await refusalIn(whole, prompt, images)).toMatch(message)
  })

  it('a picture for a model of texts', async () => {
    expect(await refusalOf(new NodeDirectory('models/union-3m'), 'And the people', square)).toMatch(
      /images: lowrank gives this model no pictures with its texts/,
    )
  })
})
