// Entry of the worker thread that training runs in, in Node.

import { serveEngine } from '../../runtime/host.js'
import { ownerPort } from '../../runtime/node/worker.js'
import { TrainEngine } from '../engine.js'

serveEngine(ownerPort(), (runtime) => new TrainEngine(runtime))
