// Entry of the worker thread that inference runs in, in Node.

import { serveEngine } from '../../runtime/host.js'
import { ownerPort } from '../../runtime/node/worker.js'
import { InferEngine } from '../engine.js'

serveEngine(ownerPort(), (runtime) => new InferEngine(runtime))
