// lowrank/server: an HTTP server over one model and many adapters.

export type { ResolveAdapter } from './serve/adapters.js'
export { createHandler, type Handler, type HandlerOptions } from './serve/handler.js'
