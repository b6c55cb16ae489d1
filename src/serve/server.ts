// lowrank/server: an HTTP server for a model and many adapters.

// The files of src/serve/, in reading order:
//   node/                           listens on a port
//   handler.ts, dispatch.ts         from a Request to its route and back
//   routes.ts, routes/              the table of routes, and one file a family of them
//   keys.ts, fields.ts, bodies/     who calls, and what bodies may contain
//   forms/                          one file for each form in which texts are asked for
//   serving.ts                      what all routes share: the session, its adapters, the queue, the counts
//   upstream/                       servers that are asked instead of this one
//   jobs/                           fine-tuning and files
//   store/                          the database in which jobs, files, chats and names are

/** @module lowrank/server */

export type { ResolveAdapter } from './adapters.js'
export { createHandler, type Handler } from './handler.js'
export type { HandlerEvents, HandlerOptions } from './handler-options.js'
export type { Training } from './jobs/training.js'
export { type ApiKey, parseApiKey } from './keys.js'
export type { RequestEntry } from './route.js'
export type { AliasTarget, Exchange, Upstream } from './upstream/upstreams.js'
