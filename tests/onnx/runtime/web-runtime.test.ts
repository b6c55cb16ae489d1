// The runtime of a page: its URLs, and its threads, which onnxruntime-web only reads from its environment before its
// first session.

import { describe, expect, it } from 'vitest'
import { ConfigError, type OrtModule, webRuntime } from '../../../src/api/node.js'
import { openEngine } from '../../../src/onnx/runtime/host.js'
import { loadRuntime } from '../../../src/onnx/runtime/load.js'

it('takes the URLs of a bundle and its .wasm file', () => {
  const [specifier, wasm] = ['https://example.org/ort.mjs', 'https://example.org/ort-1a2b3c.wasm']
  expect(webRuntime(specifier)).toMatchObject({ specifier, wasm: undefined })
  expect(webRuntime(specifier, wasm)).toMatchObject({ specifier, wasm })
})

it('says when a URL is none, or relative where there is no page', () => {
  for (const url of ['/ort.mjs', 'https://', '']) {
    expect(() => webRuntime(url)).toThrow(ConfigError)
    expect(() => webRuntime(url)).toThrow(/^url: .*got "/)
    expect(() => webRuntime('https://example.org/ort.mjs', url)).toThrow(/^wasm: .*got "/)
  }
})

const SOURCE = 'export const env = { wasm: {} }; export const InferenceSession = {}; export class Tensor {}'
const moduleOf = (name: string) => `data:text/javascript,${encodeURIComponent(`// ${name}\n${SOURCE}`)}`

class Nothing {
  async dispose(): Promise<void> {}
}

describe('threads', () => {
  it('are set where they are given, in a worker', async () => {
    for (const threads of [undefined, 3]) {
      const specifier = moduleOf(`worker ${threads}`)
      await loadRuntime(specifier, undefined, threads)
      const { env }: OrtModule = await import(/* @vite-ignore */ specifier)
      expect(env?.wasm?.numThreads).toBe(threads)
    }
  })

  it('are set where they are given, in the thread of the caller', async () => {
    for (const threads of [undefined, 3]) {
      const module: OrtModule = await import(/* @vite-ignore */ moduleOf(`own ${threads}`))
      await openEngine({ module }, 'infer', async () => Nothing, threads)
      expect(module.env?.wasm?.numThreads).toBe(threads)
    }
  })

  it('are told to the worker before anything else', async () => {
    const messages: unknown[] = []
    const port = {
      post: (message: unknown) => void messages.push(message),
      listen() {},
      async close() {},
      abandon() {},
    }
    await openEngine({ specifier: 'ort', wasm: 'ort.wasm', spawn: () => port }, 'train', async () => Nothing, 2)
    expect(messages[0]).toMatchObject({ method: 'loadRuntime', args: ['ort', 'ort.wasm', 2] })
  })
})
