// Entry of the Web Worker that runs inference.

import { serveEngine } from '../runtime/serve.js'
import { webOwnerPort } from '../runtime/web-worker.js'
import { InferEngine } from './engine.js'

serveEngine(webOwnerPort(), (runtime) => new InferEngine(runtime))
