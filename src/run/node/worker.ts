// Entry of the worker thread that runs inference in Node.

import { ownerPort } from '../../onnx/runtime/node/worker.js'
import { serveEngine } from '../../onnx/runtime/serve.js'
import { InferEngine } from '../engine.js'

serveEngine(ownerPort(), (runtime) => new InferEngine(runtime))
