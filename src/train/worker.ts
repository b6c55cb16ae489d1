// Entry of the Web Worker that training runs in.

import { serveEngine } from '../runtime/serve.js'
import { webOwnerPort } from '../runtime/web-worker.js'
import { TrainEngine } from './engine.js'

serveEngine(webOwnerPort(), (runtime) => new TrainEngine(runtime))
