// ONNX graphs and config.json. The reader gets changed bytes; lowering, the graph of the loss, and the plan of a merge
// get parsed models and configs in which values were changed.

import { planMerge } from '../../../dist/api/node.js'
import { MemoryDirectory } from '../../../dist/core/base/bytes.js'
import { LowrankError } from '../../../dist/core/base/errors.js'
import { loadAdapter } from '../../../dist/lora/peft/adapter-folder.js'
import { loadModel } from '../../../dist/model/model-folder.js'
import { ModelProtoSchema } from '../../../dist/onnx/format/gen/onnx_pb.js'
import { loadOnnx } from '../../../dist/onnx/format/model.js'
import { fromBinary, toBinary } from '../../../dist/onnx/format/protobuf.js'
import { lowerFused } from '../../../dist/onnx/lower/lower.js'
import { Graph } from '../../../dist/onnx/view/graph.js'
import { buildLossGraph } from '../../../dist/train/graph/training-graph.js'
import { causalLm } from '../../../dist/train/tasks/causal-lm.js'
import { filesLike, folder, read } from '../inputs.mjs'
import { mutateBytes, mutateJson, mutateTree } from '../mutate.mjs'

const MODELS = 'tests/golden/models'
const TRAINED = ['llama-optimum', 'llama-genai', 'llama-genai-rotary', 'llama-dynamo', 'qwen2-optimum', 'gpt2-optimum']

/** Changes values of a protobuf message. If the format cannot hold a value, it draws again. */
function mutateModel(random, bytes) {
  for (;;) {
    const model = fromBinary(ModelProtoSchema, bytes)
    try {
      return Buffer.from(toBinary(ModelProtoSchema, mutateTree(random, model, { isTyped: true })))
    } catch {}
  }
}

async function checkGraph(bytes, name) {
  const files = Object.entries(folder(`${MODELS}/${name}/onnx`))
  const data = Object.fromEntries(files.map(([file, content]) => [`onnx/${file}`, content]))
  const model = () => new MemoryDirectory({ ...data, 'onnx/model.onnx': bytes })
  const load = () => loadOnnx(model(), 'onnx/model.onnx')
  const adapter = await loadAdapter(new MemoryDirectory(folder(`${MODELS}/${name}/golden/adapter-init`)))
  const layers = adapter.parts('linear').map(({ name, d, k, rank, scaling }) => ({ name, d, k, rank, scaling }))
  const uses = [
    (onnx) => lowerFused(new Graph(onnx.proto)),
    (onnx) => buildLossGraph(onnx, undefined, causalLm.open({ onnx, padTokenId: 0, graphs: {} }, []), { layers }),
    () => planMerge({ base: model(), adapters: adapter, out: new MemoryDirectory(), format: 'onnx' }),
  ]
  let refusal
  for (const use of uses) {
    try {
      await use(await load())
    } catch (error) {
      if (!(error instanceof LowrankError)) throw error
      refusal = error
    }
  }
  if (refusal !== undefined) throw refusal
}

export const targets = [
  {
    name: 'onnx-bytes',
    seeds: () => filesLike(/\.onnx$/),
    make: read,
    mutate: (random, bytes) => mutateBytes(random, bytes, { isHead: true }),
    async check(bytes) {
      const { proto } = await loadOnnx(new MemoryDirectory({ 'model.onnx': bytes }), 'model.onnx')
      lowerFused(new Graph(proto))
    },
  },
  {
    name: 'onnx-graph',
    seeds: () => TRAINED,
    make: (name) => read(`${MODELS}/${name}/onnx/model.onnx`),
    mutate: mutateModel,
    check: checkGraph,
  },
  {
    name: 'model-config',
    seeds: () => ['llama-genai', 'llama-genai-rotary'],
    make: (name) => read(`${MODELS}/${name}/config.json`),
    mutate: mutateJson,
    async check(bytes, name) {
      const model = `${MODELS}/${name}`
      const graph = folder(`${model}/onnx`)
      const onnx = Object.fromEntries(Object.entries(graph).map(([file, content]) => [`onnx/${file}`, content]))
      const directory = new MemoryDirectory({ ...folder(model), ...onnx, 'config.json': bytes })
      const loaded = await loadModel(directory, { runtime: { module: {} } })
      causalLm.check(loaded)
      await loaded.close()
    },
  },
]
