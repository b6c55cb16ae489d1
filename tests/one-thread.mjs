// Loaded before every program and thread of the tests: sessions take one thread unless they are told otherwise. Several
// test files run at a time, and threads of ONNX Runtime that wait for work in a loop take the time of the others.

import { createRequire } from 'node:module'

const require = createRequire(import.meta.url)
const { InferenceSession } = require('onnxruntime-common')
const { create } = InferenceSession

// The module's only way to open a session: (model, options), (buffer, offset, length, options).
InferenceSession.create = (...args) => {
  const options = typeof args.at(-1) === 'object' && args.length > 1 ? args.pop() : {}
  return create(...args, { intraOpNumThreads: 1, ...options })
}
