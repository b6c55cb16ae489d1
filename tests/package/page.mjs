// A page for each bundler: it uses adapters in memory, checks that errors have a single class, and starts a worker.

import {
  ConfigError,
  LoraAdapter,
  loadAdapter,
  loadModel,
  MemoryDirectory,
  saveAdapter,
  train,
  webRuntime,
} from 'lowrank'
import { handoff } from 'lowrank/handoff'

async function run() {
  const adapter = new LoraAdapter({ rank: 1, targetModules: ['q'] })
  adapter.addFactors('q', [[1, 2]], [[3], [4]])
  const folder = new MemoryDirectory()
  await saveAdapter(adapter, folder)
  const back = await loadAdapter(folder)
  const refused = await handoff({}).catch((error) => error)
  const path = await loadAdapter('./adapter').catch((error) => error)
  const fetched = async (file) => new Uint8Array(await (await fetch(`/model/${file}`)).arrayBuffer())
  const files = {}
  for (const file of ['config.json', 'tokenizer.json', 'onnx/model.onnx']) files[file] = await fetched(file)
  const model = await loadModel(new MemoryDirectory(files), { runtime: webRuntime('/no-runtime-here.mjs') })
  // The worker starts, and then it cannot find the runtime.
  const failed = await train({ model, data: [{ text: 'a b' }], maxSteps: 1 }).catch((error) => error)
  return {
    weightB: [...back.layer('q').weightB.data],
    isOneClass: refused instanceof ConfigError,
    path: path.code,
    worker: failed.code,
    message: String(failed.message),
  }
}

let body
try {
  body = JSON.stringify(await run())
} catch (error) {
  body = JSON.stringify({ failed: error instanceof Error ? error.stack : String(error) })
}
await fetch('/result', { method: 'POST', body })
