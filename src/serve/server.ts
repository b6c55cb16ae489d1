// lowrank/server: an HTTP server for a model and many adapters.

/** @module lowrank/server */

export type { ResolveAdapter } from './adapters.js'
export { createHandler, type Handler } from './handler.js'
export type { HandlerEvents, HandlerOptions } from './handler-options.js'
export type { Training } from './jobs/training.js'
export { type ApiKey, parseApiKey } from './keys.js'
export type { RequestEntry } from './route.js'
export type { AliasTarget, Exchange, Upstream } from './upstream/upstreams.js'
