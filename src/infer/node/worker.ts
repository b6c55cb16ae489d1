// Entry of the worker thread that runs inference in Node.

import { ownerPort } from '../../runtime/node/worker.js'
import { serveEngine } from '../../runtime/serve.js'
import { InferEngine } from '../engine.js'

serveEngine(ownerPort(), (runtime) => new InferEngine(runtime))
