// Entry of the worker thread that training runs in, in Node.

import { ownerPort } from '../../../onnx/runtime/node/worker.js'
import { serveEngine } from '../../../onnx/runtime/serve.js'
import { TrainEngine } from '../engine.js'

serveEngine(ownerPort(), (runtime) => new TrainEngine(runtime))
