// The public API for both runtimes: everything here runs in Node and in browsers.

export * from './base/errors.js'
