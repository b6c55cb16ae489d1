// `lowrank/transformers` in Node, Bun and Deno. It is the same as in pages, except that sources can be paths.

import '../../node.js'
import { createRequire } from 'node:module'
import { usePlace } from '../module.js'

// When this is called, transformers.js has already loaded its ONNX Runtime, wherever it is installed.
usePlace({
  device: 'cpu',
  async candidates() {
    const { cache } = createRequire(import.meta.url)
    return Object.entries(cache).flatMap(([path, module]) => (/onnxruntime/.test(path) ? [module?.exports] : []))
  },
})

export * from '../../transformers.js'
