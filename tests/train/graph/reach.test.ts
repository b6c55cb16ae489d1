import { describe, expect, it } from 'vitest'
import { loadModel } from '../../../src/api/node.js'
import { Random } from '../../../src/core/base/random.js'
import { findLinears } from '../../../src/model/match/linears.js'
import { OnnxModel } from '../../../src/onnx/format/model.js'
import { Builder } from '../../../src/onnx/view/builder.js'
import { Graph } from '../../../src/onnx/view/graph.js'
import { gradientReach } from '../../../src/train/graph/reach.js'
import { buildTrainingGraph } from '../../../src/train/graph/training-graph.js'
import { causalLm } from '../../../src/train/tasks/causal-lm.js'
import { addInput, addOutput, DataType, emptyGraph } from '../../onnx/toolkit.js'
import { directoryOf, inThread } from '../../run/models.js'

/** Returns the layers that no gradient reaches, if the nodes of `between` stand in front of the last layer. */
function unreached(between: (g: Builder, x: string) => string): string[] {
  const graph = emptyGraph(23)
  const g = new Builder(graph, 'test')
  const layer = (name: string, x: string) => {
    const weight = g.op('Identity', [g.float(Array(16).fill(0.5), [4, 4])])
    const node = g.node('MatMul', [x, weight])
    node.name = `/${name}/MatMul`
    return node.output[0]
  }
  const first = layer('first', addInput(graph, 'x', DataType.FLOAT, [2, 4]))
  const beside = layer('beside', first)
  const last = layer('last', g.add(beside, between(g, first)))
  addOutput(graph, g.op('Identity', [last]), DataType.FLOAT)
  const model = graph.toModel()
  const values = gradientReach(model).stopped
  return findLinears(new Graph(model)).flatMap(({ name, output }) => (values.has(output) ? [name] : []))
}

it('tells the layers in front of an operator without a gradient, and no others', () => {
  expect(unreached((g, x) => g.op('Hardmax', [x]))).toEqual(['first'])
  expect(unreached((g, x) => g.op('com.microsoft:Unheard', [x]))).toEqual(['first'])
})

it('does not stop at operators with a gradient, with a lowering, or whose output is constant almost everywhere', () => {
  expect(unreached((g, x) => g.op('Softmax', [x]))).toEqual([])
  expect(unreached((g, x) => g.op('com.microsoft:BiasGelu', [x, g.float([1, 2, 3, 4])]))).toEqual([])
  expect(unreached((g, x) => g.cast(g.op('Greater', [g.op('Hardmax', [x]), g.float(0)]), DataType.FLOAT))).toEqual([])
})

/** Returns whether a training graph with only this layer can be built, up to measuring its shapes. */
async function isTrained(model: OnnxModel, open: ReturnType<typeof causalLm.open>, layer: object): Promise<boolean> {
  const measured = new Error('measured')
  const runtime = { createSession: () => Promise.reject(measured) }
  const building = buildTrainingGraph(model, runtime as never, open, { layers: [layer as never] })
  return building.then(
    () => true,
    (error: Error) => {
      if (error !== measured && !/no gradient through/.test(error.message)) throw error
      return error === measured
    },
  )
}

describe.each(['hybrids/granite_h/mobius', 'hybrids/qwen3_5/mobius', 'models/qwen3-genai', 'models/llama-optimum'])(
  '%s',
  (folder) => {
    it('says of each layer what training finds, wherever an unknown operator stands', async () => {
      const model = await loadModel(directoryOf(`tests/golden/${folder}`), { runtime: inThread })
      const open = causalLm.open(model, [])
      const random = new Random(7, folder)
      const found = new Set<boolean>()
      for (let draw = 0; draw < 4; draw++) {
        const { proto, name, fileName, files } = model.onnx
        const graph = new Graph(proto)
        const places = findLinears(graph).flatMap(({ input, output }) => [input, output])
        const place = places[Math.floor(random.uniform() * places.length)]
        const unheard = new Builder(graph, 'unheard')
        if (draw > 0) graph.putBehind(place, (value) => unheard.op('com.microsoft:Unheard', [value]), 'known')
        const drawn = new OnnxModel(name, fileName, graph.toModel(), files)
        const { stopped } = gradientReach(drawn.proto)
        for (const { name, d, k, output, isHead } of findLinears(new Graph(drawn.proto))) {
          if (isHead) continue
          const isReached = !stopped.has(output)
          found.add(isReached)
          const layer = { name, d, k, rank: 1, scaling: 1 }
          expect(await isTrained(drawn, open as never, layer), `${name} with an operator at ${place}`).toBe(isReached)
        }
      }
      expect(found).toEqual(new Set([true, false]))
      await model.close()
    })
  },
)
