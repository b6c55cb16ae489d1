// Places the adapters of tests/golden on the graphs of their suites, for each use. placements.json has the results of
// those that fit; they were compared, byte by byte, with what sessions, merges and training made when each placed
// adapters by itself. After a deliberate change: UPDATE=1 npx vitest run tests/model/place

import { createHash } from 'node:crypto'
import { existsSync, readdirSync, readFileSync, writeFileSync } from 'node:fs'
import { basename, dirname, join } from 'node:path'
import { fileURLToPath } from 'node:url'
import { expect, it } from 'vitest'
import { loadAdapter } from '../../../src/api/node.js'
import { NodeDirectory } from '../../../src/files/io/node/files.js'
import type { LoraAdapter } from '../../../src/lora/adapter.js'
import { findEmbeddings } from '../../../src/model/match/forms/lookup.js'
import { findLinears } from '../../../src/model/match/linears.js'
import { linesOf, readFacts } from '../../../src/model/place/facts.js'
import { place, placedModel } from '../../../src/model/place/place.js'
import { NO_FACTS, type Placement, placedAdapter } from '../../../src/model/place/placement.js'
import { loadOnnx, type OnnxModel } from '../../../src/onnx/format/model.js'
import { readGraph } from '../../../src/onnx/view/graph.js'
import { goldenPath } from '../../golden.js'

const USES = ['session', 'merge', 'training'] as const
const FILE = fileURLToPath(new URL('placements.json', import.meta.url))

/** Graph → adapter → for each of USES a digest of the placements and problems. */
type Placements = Record<string, Record<string, string>>

/** Everything that a placement says. */
function lineOf(at: Placement): string {
  const { node, input, part } = at
  const said = { ...at, node: undefined, input: undefined, part: undefined }
  const text = JSON.stringify(said, (key, value) => {
    if (key !== 'linear' && key !== 'bias' && key !== 'stack') return value
    return (
      value && { name: value.name, fused: value.fused, form: value.form?.name, layout: value.layout, ...sizes(value) }
    )
  })
  return `${part} ${node.name || node.output[0]} ${input} ${text}`
}

function sizes({ k, d, start, width, shape, input }: Record<string, unknown>) {
  return { k, d, start, width, shape, at: typeof input === 'number' ? input : undefined }
}

async function placed(onnx: OnnxModel, config: object, adapter: LoraAdapter, use: (typeof USES)[number]) {
  const graph = readGraph(onnx)
  const model = { graph, linears: findLinears(graph), embeddings: findEmbeddings(graph), config: { ...config }, use }
  const parts = placedAdapter(adapter)
  const { placements, problems } = place(model, parts, await readFacts(onnx, model, parts, linesOf(adapter)))
  const lines = [...placements.map(lineOf), ...problems.map(({ error }) => error.message)].sort()
  const digest = createHash('sha1').update(lines.join('\n')).digest('hex').slice(0, 6)
  return { digest, fits: problems.length === 0 && placements.length > 0 }
}

/** All graphs with all adapters of their suites. */
function everyPair(): Placements {
  const all: Placements = {}
  for (const suite of goldenSuites()) {
    const files = readdirSync(goldenPath(suite), { recursive: true, encoding: 'utf8' }).sort()
    const adapters = files.filter((path) => basename(path) === 'adapter_config.json')
    for (const graph of files.filter((path) => path.endsWith('.onnx'))) {
      all[`${suite}/${graph}`] = Object.fromEntries(adapters.map((path) => [dirname(path), '']))
    }
  }
  return all
}

function goldenSuites(): string[] {
  const entries = readdirSync(goldenPath(), { withFileTypes: true })
  return entries.flatMap((entry) => (entry.isDirectory() ? entry.name : []))
}

it('places golden adapters as before', { timeout: 300_000 }, async () => {
  const isUpdate = process.env.UPDATE !== undefined
  const known: Placements = isUpdate ? everyPair() : JSON.parse(readFileSync(FILE, 'utf8'))
  const found: Placements = {}
  const adapters = new Map<string, LoraAdapter>()
  for (const [graph, wanted] of Object.entries(known)) {
    const path = goldenPath(graph)
    const onnx = await loadOnnx(new NodeDirectory(dirname(path)), basename(path))
    const file = [dirname(path), dirname(dirname(path))].map((at) => join(at, 'config.json')).find(existsSync)
    const config = file === undefined ? {} : JSON.parse(readFileSync(file, 'utf8'))
    for (const name of Object.keys(wanted)) {
      const folder = goldenPath(graph.split('/')[0], name)
      const adapter = adapters.get(folder) ?? (await loadAdapter(folder))
      adapters.set(folder, adapter)
      const results = []
      for (const use of USES) results.push(await placed(onnx, config, adapter, use))
      if (isUpdate && results.every(({ fits }) => !fits)) continue
      found[graph] = { ...found[graph], [name]: results.map(({ digest }) => digest).join(' ') }
    }
    await onnx.close()
  }
  if (isUpdate) writeFileSync(FILE, `${JSON.stringify(found, null, 2)}\n`)
  expect(Object.keys(known).length).toBeGreaterThan(50)
  expect(found).toEqual(isUpdate ? expect.anything() : known)
})

it('places a tensor other than weight and bias by its reader, not in the weight of a layer', async () => {
  const onnx = await loadOnnx(new NodeDirectory(goldenPath()), 'vocabulary-parts/untied/onnx/model.onnx')
  const module = 'lm_head'
  const part = {
    kind: 'replacement',
    name: 'lm_head.scale',
    module,
    dtype: 'fp32',
    shape: [64, 32],
    isTrained: true,
  } as const
  const adapter = { parts: [part], isConv1d: false, has: () => true }
  const { placements, problems } = place(placedModel(readGraph(onnx), 'merge'), adapter, NO_FACTS)
  expect(placements).toEqual([])
  expect(problems[0].error.message).toMatch(/lm_head\.scale: the graph has no tensor that is certain to be this one/)
})
