import { createMergeKernel } from '../../../src/core/kernels/merge-kernel.js'
import { mergeKernelSuite } from './merge-suite.js'
import { referenceMergeKernel } from './reference-merge.js'

mergeKernelSuite('reference', referenceMergeKernel)
mergeKernelSuite('wasm', createMergeKernel)
