// The code that only runs with a folder need, in one file, so that pages without a folder do not load it.

export { checkFingerprint, fingerprintOf, stepsIn } from './fingerprint.js'
export { checkRunFolder, readMetrics, readState } from './run-folder.js'
export { RunWriter } from './run-writer.js'
