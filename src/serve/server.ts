// lowrank/server: an HTTP server for a model and many adapters.

// What is in src/serve/, in reading order:
//   handler.ts, service.ts, route.ts      from a Request to its route and back
//   keys.ts, gate.ts                      who calls, and who waits
//   fields.ts                             what bodies may contain
//   forms/                                answers in the forms of several APIs
//   bodies/                               bodies on their way, and long answers
//   texts.ts, messages.ts, tool-calls.ts  chats and completions
//   upstream/                             servers that are asked instead of this one
//   jobs/                                 fine-tuning and files
//   node/                                 listens on a port

/** @module lowrank/server */

export type { ResolveAdapter } from './adapters.js'
export { createHandler, type Handler } from './handler.js'
export type { HandlerEvents, HandlerOptions } from './handler-options.js'
export type { Training } from './jobs/training.js'
export { type ApiKey, parseApiKey } from './keys.js'
export type { RequestEntry } from './route.js'
export type { AliasTarget, Exchange, Upstream } from './upstream/upstreams.js'
