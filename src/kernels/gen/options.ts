// Made by scripts/generate/options.mjs from the types. Do not edit.

import type { KernelOptions } from '../index.js'
import { type OptionTable, ranged, anyOf, oneOf } from '../../base/options.js'

export const KERNEL_OPTIONS: OptionTable<KernelOptions> = {
  threads: ranged('an integer in [1, 1024]'),
  simd: anyOf(oneOf('none'), oneOf('relaxed', 'plain')),
}

