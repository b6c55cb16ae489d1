// Entry of the worker thread that training runs in, in Node.

import { ownerPort } from '../../runtime/node/worker.js'
import { serveEngine } from '../../runtime/serve.js'
import { TrainEngine } from '../engine.js'

serveEngine(ownerPort(), (runtime) => new TrainEngine(runtime))
