// lowrank/server: an HTTP server for a model and many adapters.

/** @module lowrank/server */

export type { ResolveAdapter } from './serve/adapters.js'
export { createHandler, type Handler } from './serve/handler.js'
export type { HandlerOptions } from './serve/handler-options.js'
export type { Training } from './serve/jobs/training.js'
export { type ApiKey, parseApiKey } from './serve/keys.js'
export type { RequestEntry } from './serve/route.js'
