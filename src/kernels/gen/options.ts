// Made by scripts/generate/options.mjs from the types. Do not edit.

import { anyOf, type OptionTable, oneOf, ranged } from '../../base/options.js'
import type { KernelOptions } from '../index.js'

export const KERNEL_OPTIONS: OptionTable<KernelOptions> = {
  threads: ranged('an integer of at least 1'),
  simd: anyOf(oneOf('none'), oneOf('relaxed', 'plain')),
}
