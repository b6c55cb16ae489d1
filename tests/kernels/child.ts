// The code for the child processes of process.slow.test.ts, which is bundled into one file.

export { defaultKernels, disposeKernels } from '../../src/kernels/index.js'
export { LoraLayer } from '../../src/lora/layer.js'
