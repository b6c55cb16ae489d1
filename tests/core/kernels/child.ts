// The code for the child processes of process.slow.test.ts, which is bundled into one file.

export { disposeKernels, gemm, kernelName } from '../../../src/core/kernels/index.js'
export { LoraLayer } from '../../../src/lora/layer.js'
