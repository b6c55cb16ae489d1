import { env } from '@huggingface/transformers'
import { pipelineWithAdapters } from 'lowrank/transformers'
import mjs from 'onnxruntime-web/ort-wasm-simd-threaded.asyncify.mjs?url'
import wasm from 'onnxruntime-web/ort-wasm-simd-threaded.asyncify.wasm?url'

const here = (path) => new URL(path, document.baseURI).href
env.backends.onnx.wasm.wasmPaths = { mjs: here(mjs), wasm: here(wasm) }
// Otherwise transformers.js runs ONNX Runtime from a blob, which an extension may not.
env.useWasmCache = false

let opening
document.querySelector('form').addEventListener('submit', async (event) => {
  event.preventDefault()
  const prompt = new FormData(event.target).get('prompt')
  opening ??= pipelineWithAdapters('text-generation', here('model/'), { adapters: { mine: here('adapter/') } })
  const write = await opening
  for (const adapter of [null, 'mine']) {
    const [{ generated_text }] = await write(prompt, { adapter, max_new_tokens: 20, do_sample: false })
    document.getElementById(adapter ?? 'alone').textContent = generated_text
  }
})
