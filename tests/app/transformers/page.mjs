// The script of page.slow.test.ts in the page: pipelines with adapters on WASM and on WebGPU.

import { env, pipeline } from '@huggingface/transformers'
import { MemoryDirectory } from 'lowrank'
import { pipelineWithAdapters } from 'lowrank/transformers'
import { env as another } from 'onnxruntime-web/webgpu'

const { prompt, options, model, adapter, wasmPaths } = await (await fetch('/job.json')).json()

async function folder(base, files) {
  const fetched = files.map(async (file) => [
    file,
    new Uint8Array(await (await fetch(`/${base}/${file}`)).arrayBuffer()),
  ])
  return new MemoryDirectory(Object.fromEntries(await Promise.all(fetched)))
}

async function run() {
  Object.assign(env, { useWasmCache: false, useBrowserCache: false, allowRemoteModels: false, allowLocalModels: true })
  Object.assign(env, { localModelPath: '/' })
  env.backends.onnx.wasm.wasmPaths = wasmPaths
  const source = await folder('model', model)
  const adapters = { a: await folder('adapter', adapter) }
  const texts = {}
  const write = async (device, pipe) => {
    const both = await Promise.all([pipe(prompt, options), pipe(prompt, { ...options, adapter: 'a' })])
    texts[device] = both.map(([{ generated_text: text }]) => text)
  }
  let locations
  for (const device of ['wasm', 'webgpu']) {
    const pipe = await pipelineWithAdapters('text-generation', source, { adapters, device })
    await write(device, pipe)
    const outputs = await pipe.model(pipe.tokenizer(prompt))
    locations = Object.entries(outputs).map(([name, { location }]) => `${name.split('.')[0]} ${location}`)
    await pipe.dispose()
  }
  const plain = await pipeline('text-generation', 'model', { dtype: 'fp32', device: 'wasm' })
  const own = [(await plain(prompt, options))[0].generated_text]
  const runtimes = new Set([another.versions.web, env.backends.onnx.versions.web]).size
  return { texts, own, runtimes, caches: env.useCustomCache, locations: [...new Set(locations)] }
}

const body = await run().then(JSON.stringify, (error) => JSON.stringify({ failed: String(error?.stack ?? error) }))
await fetch('/result', { method: 'POST', body })
