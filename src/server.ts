// lowrank/server: an HTTP server for a model and many adapters.

export type { ResolveAdapter } from './serve/adapters.js'
export { createHandler, type Handler } from './serve/handler.js'
export type { HandlerOptions, RequestEntry } from './serve/handler-options.js'
export { type ApiKey, parseApiKey } from './serve/keys.js'
