// Merges into models with several graphs and branches. The results give PEFT's logits in plain ONNX Runtime.

import { existsSync, mkdtempSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import path from 'node:path'
import * as ort from 'onnxruntime-node'
import { afterAll, describe, expect, it } from 'vitest'
import {
  loadAdapter,
  loadModel,
  MemoryDirectory,
  MismatchError,
  merge,
  planMerge,
  UnsupportedError,
  unmerge,
} from '../../src/api/node.js'
import { NodeDirectory } from '../../src/files/io/node/files.js'
import { merge as mergeFolders } from '../../src/merge/merge.js'
import { ModelSession } from '../../src/run/model-session.js'
import { pictureGolden } from '../picture-texts.js'
import { graphsFolder, graphsNumbers, stockLogits, worst } from '../several-graphs.js'
import { cases } from '../thorough.js'
import { stockPictureLogits } from '../vision-language.js'

const work = mkdtempSync(path.join(tmpdir(), 'lowrank-graphs-'))
afterAll(() => rmSync(work, { recursive: true }))

const adapterOf = (name: string) => path.join(graphsFolder(name), 'golden', 'adapter')

describe('encoder and decoder', () => {
  it.each(cases(['t5'], ['bart', 'whisper']))(
    '%s: the merged folder has PEFT’s logits, in both branches, and unmerges',
    async (name) => {
      const out = path.join(work, name)
      const numbers = await graphsNumbers(name)
      const report = await merge({ threads: 1, base: graphsFolder(name), adapters: adapterOf(name), out })
      const adapter = await loadAdapter(adapterOf(name))
      expect(report.layers.map((layer) => layer.name).sort()).toEqual(adapter.names().sort())
      const merged = await stockLogits(out, name)
      expect(worst(merged.whole, numbers.get('adapted')!)).toBeLessThan(1e-5)
      expect(worst(merged.cached, numbers.get('adapted')!.slice(-2048))).toBeLessThan(1e-5)
      const back = path.join(work, `${name}-back`)
      await unmerge({ threads: 1, merged: out, adapters: adapterOf(name), out: back })
      const unmerged = await stockLogits(back, name)
      expect(worst(unmerged.whole, numbers.get('base')!)).toBeLessThan(1e-5)
      expect(worst(unmerged.cached, numbers.get('base')!.slice(-2048))).toBeLessThan(1e-5)
    },
  )

  it('pictures, embedding and decoder: all three are written, and give PEFT’s logits', async () => {
    const [base, adapters] = [graphsFolder('llava'), adapterOf('llava')]
    const out = path.join(work, 'llava')
    await expect(merge({ threads: 1, base, adapters, out })).rejects.toThrow(
      /decoder_model_merged.onnx, onnx\/embed_tokens.onnx, onnx\/vision_encoder.onnx\) has a module for model.vision_tower.encoder.layers.1/,
    )
    expect(existsSync(out)).toBe(false)
    const report = await merge({ threads: 1, base, adapters, out, allowMissing: true })
    expect(report.warnings).toEqual([expect.stringMatching(/left out.*layers.1.mlp.fc1/)])
    const numbers = await graphsNumbers('llava')
    const merged = await stockPictureLogits(out)
    expect(worst(merged.whole, numbers.get('adapted')!)).toBeLessThan(1e-5)
    expect(worst(merged.cached, numbers.get('adapted')!.slice(-2048))).toBeLessThan(1e-5)
    const back = path.join(work, 'llava-back')
    await unmerge({ threads: 1, merged: out, adapters, out: back, allowMissing: true })
    expect(worst((await stockPictureLogits(back)).whole, numbers.get('base')!)).toBeLessThan(1e-5)
  })

  it.each(cases(['qwen2-vl'], ['idefics3']))(
    '%s: the merged folder writes PEFT’s texts about pictures',
    async (name) => {
      const out = path.join(work, name)
      await merge({ threads: 1, base: graphsFolder(name), adapters: adapterOf(name), out })
      const model = await loadModel(out, { runtime: { module: ort } })
      const session = await ModelSession.open(model, {}, true)
      const { cases, picture } = pictureGolden(name)
      const prompts = cases.map(({ prompt, messages }) => (prompt ?? messages)!)
      const images = cases.map((one) => one.images.map(picture))
      const results = await session.generate(prompts, { images, temperature: 0, maxNewTokens: 8 })
      expect(results.map(({ tokenIds }) => tokenIds)).toEqual(cases.map(({ adapted }) => adapted.ids))
      await session.dispose()
    },
  )

  it('a plan names the files of both, and writes nothing', async () => {
    const out = path.join(work, 'planned')
    const plan = await planMerge({ base: graphsFolder('t5'), adapters: adapterOf('t5'), out })
    expect(plan.files.map(({ name }) => name).sort()).toEqual([
      'onnx/decoder_model_merged.onnx',
      'onnx/encoder_model.onnx',
    ])
    expect(existsSync(out)).toBe(false)
  })

  it('from folder to folder', async () => {
    const out = new MemoryDirectory()
    const directory = new NodeDirectory(graphsFolder('bart'))
    const report = await mergeFolders({ base: { directory }, adapters: new NodeDirectory(adapterOf('bart')), out })
    expect([...out.files.keys()].filter((name) => name.endsWith('.onnx')).sort()).toEqual([
      'onnx/decoder_model_merged.onnx',
      'onnx/encoder_model.onnx',
    ])
    expect(report.out).toBe(out.name)
  })

  it('an adapter of the decoder alone leaves the encoder as it is', async () => {
    const adapter = await loadAdapter(adapterOf('bart'))
    const out = path.join(work, 'decoder')
    const own = adapter.only(new Set(adapter.names().filter((name) => name.includes('.decoder.'))))
    const { changed } = await merge({ threads: 1, base: graphsFolder('bart'), adapters: own, out })
    expect(changed).toBe(own.size)
  })

  it('a layer that is in none of the graphs is an error that names them all', async () => {
    const wrong = merge({
      threads: 1,
      base: graphsFolder('t5'),
      adapters: adapterOf('bart'),
      out: path.join(work, 'wrong'),
    })
    await expect(wrong).rejects.toThrow(MismatchError)
    await expect(wrong).rejects.toThrow(
      /none of the model's graphs \(onnx\/decoder_model_merged.onnx, onnx\/encoder_model.onnx\) has a module for model\.decoder/,
    )
    expect(existsSync(path.join(work, 'wrong'))).toBe(false)
  })

  it('a layer of the decoder is not taken for one of the encoder, whose names begin later', async () => {
    const adapter = await loadAdapter(adapterOf('t5'))
    const base = { directory: new NodeDirectory(graphsFolder('t5')), file: 'onnx/encoder_model.onnx' }
    const decoder = adapter.only(new Set(adapter.names().filter((name) => name.startsWith('decoder.'))))
    const out = new MemoryDirectory()
    await expect(mergeFolders({ base, adapters: decoder, out })).rejects.toThrow(/the model has no module for decoder/)
  })

  it('do not fit into one file', async () => {
    const out = path.join(work, 'one.onnx')
    await expect(merge({ threads: 1, base: graphsFolder('t5'), adapters: adapterOf('t5'), out })).rejects.toThrow(
      UnsupportedError,
    )
  })
})

describe('allowMissing', () => {
  it('leaves out layers that an export dropped, and says which', async () => {
    const adapter = await loadAdapter(adapterOf('t5'))
    const base = { directory: new NodeDirectory(graphsFolder('t5')), file: 'onnx/encoder_model.onnx' }
    const out = new MemoryDirectory()
    await expect(mergeFolders({ base, adapters: adapter, out })).rejects.toThrow(/leave them out with `allowMissing`/)
    const report = await mergeFolders({ base, adapters: adapter, out, allowMissing: true })
    expect(report.warnings).toEqual([expect.stringMatching(/^left out, .*: decoder\.block\.0/)])
    expect(report.layers.every(({ name }) => name.startsWith('encoder.'))).toBe(true)
  })

  it('does not write a model that no layer fits', async () => {
    const base = { directory: new NodeDirectory(graphsFolder('t5')) }
    const request = {
      base,
      adapters: new NodeDirectory(adapterOf('bart')),
      out: new MemoryDirectory(),
      allowMissing: true,
    }
    await expect(mergeFolders(request)).rejects.toThrow(/no module for any of its layers/)
  })
})
