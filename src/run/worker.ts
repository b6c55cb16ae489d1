// Entry of the Web Worker that runs inference.

import { serveEngine } from '../onnx/runtime/serve.js'
import { webOwnerPort } from '../onnx/runtime/web-worker.js'
import { InferEngine } from './engine.js'

serveEngine(webOwnerPort(), (runtime) => new InferEngine(runtime))
