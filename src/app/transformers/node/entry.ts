// `lowrank/transformers` in Node, Bun and Deno. It is the same as in pages, except that sources can be paths.

import '../../../api/node.js'
import { createRequire } from 'node:module'
import type { OrtModule } from '../../../onnx/runtime/onnxruntime.js'
import { usePlace } from '../module.js'

// When this is called, transformers.js has already loaded its ONNX Runtime, wherever it is installed.
usePlace({
  device: 'cpu',
  async runtimeOf({ env }) {
    const loaded = Object.entries(createRequire(import.meta.url).cache)
    return loaded
      .filter(([path]) => /onnxruntime/.test(path))
      .map(([, module]) => module?.exports as OrtModule | undefined)
      .find((module) => module?.InferenceSession && module.env?.versions === env.backends.onnx?.versions)
  },
})

export * from '../entry.js'
