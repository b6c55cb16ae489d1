// The one place from which the rest of lowrank gets its kernels.

import type { Kernels } from './kernels.js'
import { referenceKernels } from './reference.js'

export function defaultKernels(): Kernels {
  return referenceKernels
}
