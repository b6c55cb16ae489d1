// Encoder and decoder joined into one graph, even if both number their nodes and values in the same way, as
// torch.onnx(dynamo=True) does.

import * as ort from 'onnxruntime-node'
import { expect, it } from 'vitest'
import { type Feeds, loadModel, type Model } from '../../../src/api/node.js'
import { takeBranchWithoutCache } from '../../../src/model/inputs/cache.js'
import { findLinears } from '../../../src/model/match/linears.js'
import { sessionModel } from '../../../src/model/session-model.js'
import { copyMessage } from '../../../src/onnx/format/messages.js'
import { OnnxModel } from '../../../src/onnx/format/model.js'
import { loadNodeRuntime } from '../../../src/onnx/runtime/node/runtime.js'
import { Graph } from '../../../src/onnx/view/graph.js'
import { joinGraphs, renameAll } from '../../../src/train/graph/joined-graph.js'
import { graphsFolder, int64, worst } from '../../several-graphs.js'

const KEY = 'pkg.torch.onnx.name_scopes'

/** Renames a graph as torch.onnx's dynamo exporter does: numbers as names, and a node's modules in its metadata. */
function asByDynamo(onnx: OnnxModel): OnnxModel {
  const graph = new Graph(onnx.proto)
  takeBranchWithoutCache(graph)
  graph.prune({ inputs: true })
  const modules = new Map(findLinears(graph).map(({ node, name }) => [node.name, name]))
  const kept = new Set([...graph.inputs, ...graph.outputs].map(({ name }) => name))
  const values = new Map<string, string>()
  let count = 0
  const proto = renameAll(graph.toModel(), {
    value(name) {
      if (kept.has(name)) return name
      if (!values.has(name)) values.set(name, `val_${values.size}`)
      return values.get(name)!
    },
    node(node) {
      const module = modules.get(node.name)
      const value = module === undefined ? undefined : `['', '${module}', 'linear']`
      const entry = value === undefined ? [] : [{ $typeName: 'onnx.StringStringEntryProto' as const, key: KEY, value }]
      return { name: `node_${node.opType}_${count++}`, metadataProps: entry }
    },
  })
  return new OnnxModel(onnx.name, onnx.fileName, copyMessage(proto, {}), onnx.files)
}

it.each(['t5', 'bart', 't5gemma'])(
  '%s: runs, gives the logits of both graphs, and keeps the names of layers',
  async (name) => {
    const model = await loadModel(graphsFolder(name), {
      runtime: { module: ort },
    })
    const encoder = asByDynamo(await model.openGraph('encoder'))
    const numbered: Model = { ...model, onnx: asByDynamo(model.onnx), openGraph: async () => encoder }
    const [plain, joined] = [await joinGraphs(model), await joinGraphs(numbered)]
    const linears = ({ onnx }: Model) => findLinears(new Graph(onnx.proto)).map((linear) => linear.name)
    expect(linears(joined)).toEqual(linears(plain))
    const names = joined.onnx.proto.graph!.node.map((node) => node.name)
    expect(new Set(names).size).toBe(names.length)
    const ids = [5, 17, 40]
    const feeds: Feeds = {
      ...{ input_ids: int64(ids), attention_mask: int64([1, 1, 1]), decoder_input_ids: int64([1, 9]) },
      decoder_attention_mask: int64([1, 1]),
    }
    const runtime = await loadNodeRuntime()
    const logits = await Promise.all(
      [plain, joined].map(async ({ onnx }) => {
        const session = await runtime.createSession(await sessionModel(onnx, onnx.proto), { threads: 1 })
        const own = Object.entries(feeds).filter(([input]) => session.inputNames.includes(input))
        const outputs = await session.run(Object.fromEntries(own), ['logits'])
        await session.dispose()
        return outputs.logits
      }),
    )
    expect(worst(logits[1].data as Float32Array, logits[0].data as Float32Array)).toBeLessThan(1e-5)
    await model.close()
  },
)
