// What a run with a folder needs, in one file: pages without a folder load none of it.

export { checkFingerprint, fingerprintOf, stepsIn } from './fingerprint.js'
export { checkRunFolder, readMetrics, readState } from './run-folder.js'
export { RunWriter } from './run-writer.js'
