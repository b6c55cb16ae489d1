// Errors about a graph or an adapter come before files of weights are opened, because on the Hub that downloads them.

import { readdirSync, readFileSync } from 'node:fs'
import { expect, it } from 'vitest'
import { loadOnnx, serializeModel } from '../../src/formats/onnx/model.js'
import { findLinears } from '../../src/graph/match/linears.js'
import { Builder } from '../../src/graph/view/builder.js'
import { Graph } from '../../src/graph/view/graph.js'
import { type ByteSource, LoraAdapter, MemoryDirectory, openSession, train } from '../../src/node.js'

const FOLDER = 'tests/golden/hybrids/granite_h/mobius'

class Watched extends MemoryDirectory {
  readonly opened: string[] = []
  override async open(path: string): Promise<ByteSource> {
    this.opened.push(path)
    return super.open(path)
  }
}

/** Makes the golden model with an unknown operator after the module `stop`. */
async function modelWith(stop?: string): Promise<Watched> {
  const onnx = readdirSync(`${FOLDER}/onnx`).map((name) => `onnx/${name}`)
  const files = ['config.json', ...onnx].map((path) => [path, readFileSync(`${FOLDER}/${path}`)] as const)
  const directory = new Watched(Object.fromEntries(files), 'granite')
  if (stop !== undefined) {
    const { proto } = await loadOnnx(directory, 'onnx/model.onnx')
    const graph = new Graph(proto)
    const { output } = findLinears(graph).find(({ name }) => name.endsWith(stop))!
    const g = new Builder(graph, 'unheard')
    graph.putBehind(output, (value) => g.op('com.microsoft:Unheard', [value]), 'known')
    directory.files.set('onnx/model.onnx', serializeModel(graph.toModel()))
    directory.opened.length = 0
  }
  return directory
}

const data = [{ text: 'a text' }]
const weights = 'onnx/model.onnx.data'

it('refuses to train layers that no gradient reaches, with the operator and the layers that it reaches', async () => {
  const model = await modelWith('layers.1.shared_mlp.output_linear')
  const config = { targetModules: ['in_proj', 'out_proj', 'o_proj'] }
  const [front, behind] = ['model.layers.0.mamba.in_proj', 'model.layers.1.self_attn.o_proj']
  const error = await train({ model, data, config }).catch((thrown: Error) => thrown)
  expect(String(error)).toMatch(/no gradient through com.microsoft:Unheard \(.*\) reaches model.layers.0.mamba.in_proj/)
  expect(error).toMatchObject({ code: 'UNSUPPORTED', hint: expect.not.stringContaining(front) })
  expect(model.opened).toContain('onnx/model.onnx')
  expect(model.opened).not.toContain(weights)
  const adapter = new LoraAdapter({ rank: 1, targetModules: [front, behind] })
  adapter.addLayerOfShape(front, [152, 32])
  await expect(train({ model, data, adapter })).rejects.toThrow(/no gradient through com.microsoft:Unheard/)
  expect(model.opened).not.toContain(weights)
})

it('refuses adapters that do not fit the graph', async () => {
  const model = await modelWith()
  for (const [name, shape] of [
    ['model.layers.0.mamba.in_proj', [7, 32]],
    ['model.layers.0.mamba.x_proj', [8, 8]],
  ] as const) {
    const adapter = new LoraAdapter({ rank: 1, targetModules: [name] })
    adapter.addLayerOfShape(name, shape)
    await expect(openSession(model, { adapters: { adapter } })).rejects.toThrow(name)
    expect(model.opened).toContain('onnx/model.onnx')
    expect(model.opened).not.toContain(weights)
  }
})

it('refuses adapters of experts for which the graph has no place', async () => {
  const model = await modelWith()
  const parameter = 'model.layers.0.mlp.experts.gate_weight'
  const adapter = new LoraAdapter({ rank: 1, targetModules: [], targetParameters: ['gate_weight'] })
  adapter.addExperts(parameter, [[1, 2]], [[1], [2]])
  await expect(openSession(model, { adapters: { adapter } })).rejects.toThrow(parameter)
  expect(model.opened).not.toContain(weights)
})
