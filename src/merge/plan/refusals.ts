// Refuses quantized bases: their tensors hold codes, to which nothing can be added.

import { UnsupportedError } from '../../core/base/errors.js'
import { objectOf } from '../../core/base/options.js'
import type { ModelConfig } from './config-edit.js'

const SIGNS: readonly (readonly [suffix: string, method: string])[] = [
  ['.g_idx', 'gptq'],
  ['.qweight', 'gptq or awq'],
  ['.weight_packed', 'compressed-tensors'],
  ['.weight.absmax', 'bitsandbytes'],
  ['.SCB', 'bitsandbytes'],
  ['.weight_scale_inv', 'fp8'],
  ['.weight_scale', 'fp8'],
  ['_blocks', 'mxfp4'],
]

export function refuseQuantizedConfig(config: ModelConfig | undefined, where: string): void {
  const said = config?.quantization_config ?? objectOf(config?.text_config).quantization_config
  if (said === undefined || said === null) return
  const { quant_method, load_in_4bit, load_in_8bit } = objectOf(said)
  throw quantizedError(where, String(quant_method ?? (load_in_4bit || load_in_8bit ? 'bitsandbytes' : 'unknown')))
}

export function refuseQuantizedModule(module: string, has: (tensor: string) => boolean): void {
  const sign = SIGNS.find(([suffix]) => has(module + suffix))
  if (sign !== undefined) throw quantizedError(module, sign[1])
}

function quantizedError(where: string, method: string): UnsupportedError {
  return new UnsupportedError({
    where,
    what: `a quantized base (${method}) cannot be merged into: its weights are codes with scales, which a merge would have to quantize again`,
    expected: 'weights in fp64, fp32, fp16 or bf16',
    hint: 'Merge into the unquantized checkpoint, then quantize the result; or use the adapter at run time',
  })
}
