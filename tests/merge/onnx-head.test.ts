// An adapter's head merged into .onnx files gives the logits of PEFT's merged model, and a matching config.json.

import { readFileSync } from 'node:fs'
import { describe, expect, it } from 'vitest'
import {
  type LoraAdapter,
  loadAdapter,
  loadModel,
  MemoryDirectory,
  MismatchError,
  UnsupportedError,
} from '../../src/api/node.js'
import { fitOf } from '../../src/merge/fit.js'
import { merge, planMerge } from '../../src/merge/merge.js'
import { ModelSession } from '../../src/run/model-session.js'
import { directoryOf, inThread, maxDifference, openModel } from '../run/models.js'

const folder = 'tests/golden/text-classification'

interface Golden {
  rows: { text: string; textPair?: string }[]
  maxLength: number
  labels: string[]
  logits: number[][]
}

const goldenOf = (name: string): Golden => JSON.parse(readFileSync(`${folder}/${name}/golden/golden.json`, 'utf8'))
const adapterOf = (name: string) => loadAdapter(directoryOf(`${folder}/${name}/golden/adapter-init`))
const textsOf = ({ rows }: Golden) => rows.map(({ text, textPair }) => ({ text, textPair }))

/** Makes an adapter whose head has two labels instead of three. */
async function withTwoLabels(name: string): Promise<LoraAdapter> {
  const adapter = await adapterOf(name)
  adapter.remove('classifier.weight')
  adapter.remove('classifier.bias')
  const data = Float32Array.from({ length: 2 * 16 }, (_, i) => Math.sin(i))
  adapter.addReplacement('classifier.weight', { data, shape: [2, 16] })
  adapter.addReplacement('classifier.bias', { data: Float32Array.of(0.1, -0.1), shape: [2] })
  adapter.labels = ['ham', 'spam']
  adapter.problemType = 'single_label_classification'
  return adapter
}

async function mergeInto(name: string, adapter: LoraAdapter) {
  const out = new MemoryDirectory({}, 'out')
  const report = await merge({ base: { directory: directoryOf(`${folder}/${name}`) }, adapters: adapter, out })
  const config = JSON.parse(new TextDecoder().decode(out.files.get('config.json')))
  return { out, report, config }
}

describe.each(['encoder', 'classifier'])('the export of the %s', (name) => {
  const golden = goldenOf(name)

  it("gives the logits of PEFT's model", async () => {
    const { out, report, config } = await mergeInto(name, await adapterOf(name))
    const pooler = ['bert.pooler.dense.weight', 'bert.pooler.dense.bias']
    const added = name === 'encoder' ? [...pooler, 'classifier.weight', 'classifier.bias'] : []
    expect(report.added).toEqual(added)
    expect(report.warnings).toEqual([])
    expect(config.architectures).toEqual(['BertForSequenceClassification'])
    const model = await loadModel(out, { runtime: inThread })
    const session = await ModelSession.open(model)
    expect(session.outputNames).toEqual(['logits'])
    const results = await session.classify(textsOf(golden), { maxLength: golden.maxLength })
    results.forEach(({ logits }, i) => void expect(maxDifference(logits, golden.logits[i])).toBeLessThan(1e-5))
    await session.dispose()
    await model.close()
  })

  it('gets a head of another size, with its labels in config.json', async () => {
    const adapter = await withTwoLabels(name)
    const { out, config, report } = await mergeInto(name, adapter)
    expect(report.added).toContain('classifier.weight')
    expect(config).toMatchObject({
      id2label: { 0: 'ham', 1: 'spam' },
      label2id: { ham: 0, spam: 1 },
      problem_type: 'single_label_classification',
    })
    const [base, merged] = [await openModel(`${folder}/${name}`), await loadModel(out, { runtime: inThread })]
    const expected = await ModelSession.open(base, { adapters: { two: adapter } })
    const got = await ModelSession.open(merged)
    const texts = textsOf(golden)
    const wanted = await expected.classify(texts, { adapter: 'two' })
    const found = await got.classify(texts)
    expect(found.map(({ label }) => label)).toEqual(wanted.map(({ label }) => label))
    found.forEach(({ logits }, i) => void expect(maxDifference(logits, wanted[i].logits)).toBeLessThan(1e-5))
    for (const session of [expected, got]) await session.dispose()
    for (const model of [base, merged]) await model.close()
  })

  it('is planned and looked at with the head', async () => {
    const base = { directory: directoryOf(`${folder}/${name}`) }
    const adapter = await withTwoLabels(name)
    const plan = await planMerge({ base, adapters: adapter, out: new MemoryDirectory() })
    expect(plan.added).toContain('classifier.bias')
    const fit = await fitOf(base, directoryOf(`${folder}/${name}/golden/adapter-init`), ['onnx/model.onnx'])
    expect(fit).toMatchObject({ fits: true, problems: [] })
    expect(fit.notes).toHaveLength(name === 'encoder' ? 1 : 0)
  })

  it('refuses labels that are not as many, two heads, and taking a head away', async () => {
    const adapter = await withTwoLabels(name)
    const base = { directory: directoryOf(`${folder}/${name}`) }
    const out = new MemoryDirectory()
    const merging = merge({ base, adapters: [adapter, await withTwoLabels(name)], out })
    await expect(merging).rejects.toThrow(UnsupportedError)
    const unmerging = merge({ base, adapters: adapter, out, sign: -1 })
    await expect(unmerging).rejects.toThrow(/cannot be merged with a weight/)
    adapter.labels = ['a', 'b', 'c']
    await expect(merge({ base, adapters: adapter, out })).rejects.toThrow(MismatchError)
    expect(out.files.size).toBe(0)
  })
})

it('tells labels and class where no config.json goes along', async () => {
  const base = { directory: directoryOf(`${folder}/encoder`) }
  const out = new MemoryDirectory()
  const { warnings } = await merge({ base, adapters: await withTwoLabels('encoder'), out, weightsOnly: true })
  expect(warnings.join()).toMatch(/BertForSequenceClassification with the labels ham, spam/)
  expect([...out.files.keys()]).toEqual(['onnx/model.onnx'])
})

it('keeps the head where other parts are left out', async () => {
  const adapter = await withTwoLabels('encoder')
  adapter.addFactors('bert.encoder.layer.9.attention.self.query', ...oddFactors())
  const base = { directory: directoryOf(`${folder}/encoder`) }
  await expect(merge({ base, adapters: adapter, out: new MemoryDirectory() })).rejects.toThrow(/layer\.9/)
  const report = await merge({ base, adapters: adapter, out: new MemoryDirectory(), allowMissing: true })
  expect(report.added).toContain('classifier.weight')
  expect(report.warnings.join()).toContain('layer.9')
})

function oddFactors(): [number[][], number[][]] {
  const rows = (count: number, width: number) => Array.from({ length: count }, () => Array(width).fill(0.1))
  return [rows(3, 16), rows(16, 3)]
}
