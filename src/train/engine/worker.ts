// Entry of the Web Worker that training runs in.

import { serveEngine } from '../../onnx/runtime/serve.js'
import { webOwnerPort } from '../../onnx/runtime/web-worker.js'
import { TrainEngine } from './engine.js'

serveEngine(webOwnerPort(), (runtime) => new TrainEngine(runtime))
