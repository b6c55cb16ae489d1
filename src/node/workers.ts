// What the command line has to know of threads at its end.

export { hasStuckWorker } from '../runtime/node/worker.js'
