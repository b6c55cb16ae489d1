// lowrank/init: starts of layers that are computed from data, instead of drawn. They share the classes of the main
// entry.

export { cordaInitialize, evaInitialize, loftqInitialize, loraGaInitialize } from './index/init.js'
export type { CordaOptions, EvaOptions, LoftqOptions, LoraGaOptions } from './lora/init/data-inits.js'
