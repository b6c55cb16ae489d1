// `lowrank/transformers` in Node, Bun and Deno: the same as in pages, where sources can be paths.

import '../../node.js'
import { createRequire } from 'node:module'
import { usePlace } from '../module.js'

// transformers.js has loaded its ONNX Runtime when this is asked for, from wherever its package lies.
usePlace({
  device: 'cpu',
  async candidates() {
    const { cache } = createRequire(import.meta.url)
    return Object.entries(cache).flatMap(([path, module]) => (/onnxruntime/.test(path) ? [module?.exports] : []))
  },
})

export * from '../../transformers.js'
