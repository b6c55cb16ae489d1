// The table of docs/graphs.md: which part of an adapter works at which place, as `place` says it of small models. To
// write it again: UPDATE=1 npx vitest run tests/model/place

import { readFileSync, writeFileSync } from 'node:fs'
import { expect, it } from 'vitest'
import { loadAdapter } from '../../../src/api/node.js'
import { NodeDirectory } from '../../../src/files/io/node/files.js'
import { place, placedModel } from '../../../src/model/place/place.js'
import { type PartShape, type Placement, placedAdapter } from '../../../src/model/place/placement.js'
import { loadOnnx } from '../../../src/onnx/format/model.js'
import { readGraph } from '../../../src/onnx/view/graph.js'
import { goldenPath } from '../../golden.js'

const USES = ['session', 'merge', 'training'] as const
const DOCUMENT = 'docs/graphs.md'
const HEAD = '| part | at | session | merge | training |'

const [EMBEDDING, HEAD_MODULE] = ['model.embed_tokens', 'lm_head']
const LAYER = 'model.layers.0.self_attn.q_proj'
const [V, D] = [64, 32]
/** In the model, the embedding and the output layer are tied. */
const TIED = { tied: new Map([[EMBEDDING, [HEAD_MODULE]]]), copies: new Set<string>() }

const linear = (name: string, d: number, more = {}): PartShape => ({
  kind: 'linear',
  name,
  module: name,
  d,
  k: D,
  ...more,
})
const embedding = (more = {}): PartShape => {
  return { kind: 'embedding', name: EMBEDDING, module: EMBEDDING, d: D, k: V, ...more }
}
const replaced = (module: string, shape: number[], member = 'weight', isTrained = true): PartShape => {
  return { kind: 'replacement', name: `${module}.${member}`, module, shape, dtype: 'fp32', isTrained }
}
const rows = (module: string): PartShape => {
  return { kind: 'token-rows', name: `${module}[tokens]`, module, shape: [2, D], dtype: 'fp32', indices: [3, 5] }
}
const DORA = { hasMagnitude: true }

const ROWS: readonly [part: string, at: string, shape: PartShape][] = [
  ['LoRA', 'layer', linear(LAYER, D)],
  ['LoRA', 'output layer', linear(HEAD_MODULE, V)],
  ['LoRA', 'embedding', embedding()],
  ['DoRA', 'layer', linear(LAYER, D, DORA)],
  ['DoRA', 'output layer', linear(HEAD_MODULE, V, DORA)],
  ['DoRA', 'embedding', embedding(DORA)],
  ['replaced weight', 'layer', replaced(LAYER, [D, D])],
  ['replaced weight', 'output layer', replaced(HEAD_MODULE, [V, D])],
  ['replaced weight', 'embedding', replaced(EMBEDDING, [V, D])],
  ['saved weight that differs, of a tied pair', 'output layer', replaced(HEAD_MODULE, [V, D], 'weight', false)],
  ['saved weight that differs, of a tied pair', 'embedding', replaced(EMBEDDING, [V, D], 'weight', false)],
  ['token rows', 'output layer', rows(HEAD_MODULE)],
  ['token rows, tied', 'embedding', rows(EMBEDDING)],
  ['bias', 'layer', replaced(LAYER, [D], 'bias')],
]

const EXPERTS: readonly [at: string, folder: string, exporter: string][] = [
  ['experts in one tensor', 'gpt_oss_experts', 'dynamo'],
  ['experts as layers', 'qwen3_moe_experts', 'mobius'],
]

it('is in docs/graphs.md', async () => {
  const models = await Promise.all(
    ['model', 'model_q4'].map((name) => modelAt(`vocabulary-parts/tied/onnx/${name}.onnx`)),
  )
  const lines = ROWS.map(([part, at, shape]) => {
    const cells = USES.map((use) => {
      const [floats, integers] = models.map((model) => cellOf(placedModel(model, use), shape))
      return floats === integers ? floats : `${floats}; 4 bits: ${integers}`
    })
    return `| ${[part, at, ...cells].join(' | ')} |`
  })
  for (const [at, folder, exporter] of EXPERTS) {
    const path = goldenPath('hybrids', folder, exporter)
    const config = JSON.parse(readFileSync(`${path}/config.json`, 'utf8'))
    const model = await modelAt(`hybrids/${folder}/${exporter}/onnx/model.onnx`)
    const { parts } = placedAdapter(await loadAdapter(goldenPath('hybrids', folder, 'adapter')))
    const shape = parts.find(({ kind }) => kind === 'parameter')!
    const cells = USES.map((use) => cellOf(placedModel(model, use, config), shape))
    lines.push(`| ${['LoRA', at, ...cells].join(' | ')} |`)
  }
  const text = readFileSync(DOCUMENT, 'utf8')
  const start = text.indexOf(HEAD)
  const end = text.indexOf('\n\n', start)
  const table = [HEAD, '| --- | --- | --- | --- | --- |', ...lines].join('\n')
  if (process.env.UPDATE !== undefined) writeFileSync(DOCUMENT, text.slice(0, start) + table + text.slice(end))
  else expect(text.slice(start, end)).toBe(table)
})

async function modelAt(path: string) {
  return readGraph(await loadOnnx(new NodeDirectory(goldenPath()), path))
}

function cellOf(model: ReturnType<typeof placedModel>, part: PartShape): string {
  const { placements, problems } = place(model, { parts: [part], isConv1d: false, has: () => false }, TIED)
  if (problems.length > 0) return `no: ${problems[0].error.what}`
  const said = placements.map((at) => wordsFor(at, model.use))
  const isBoth = placements.length > 1 && part.kind !== 'parameter'
  return `${[...new Set(said)].join(', ')}${isBoth ? ', in both of the pair' : ''}`
}

function wordsFor(at: Placement, use: (typeof USES)[number]): string {
  if (use === 'session') return 'yes'
  const isInFloats = at.kind === 'weight' && at.inFloats
  if (isInFloats) return 'as floats'
  if (use === 'training') return 'yes'
  if (at.kind === 'layer') return at.linear.form.isQuantized ? 'beside the weight' : 'into the weight'
  return at.kind === 'stack' ? 'into the weights' : 'in its place'
}
