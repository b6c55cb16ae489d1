// Errors for adapters that cannot be merged into a graph.

import { MismatchError, UnsupportedError } from '../../base/errors.js'
import type { Linear } from '../../graph/match/linears.js'
import { floatAttribute } from '../../graph/view/attributes.js'

export function noBias(name: string): MismatchError {
  return new MismatchError({
    where: name,
    what: 'the adapter has a bias of B (lora_bias), but the graph has no bias here to add it to',
  })
}

/** Throws UnsupportedError for a weight whose values cannot be changed. */
export function refuseUnmergeable({ node, form }: Linear): void {
  const hasAlpha = node.opType === 'Gemm' && floatAttribute(node, 'alpha', 1) !== 1
  if (!form.isQuantized && !hasAlpha) return
  throw new UnsupportedError({
    where: `node ${node.name}`,
    what: hasAlpha
      ? 'a Gemm whose alpha is not 1 cannot be merged into'
      : 'values of a quantized weight cannot be replaced',
    expected: 'a weight in f32, f16 or bf16',
    got: hasAlpha ? `alpha ${floatAttribute(node, 'alpha', 1)}` : node.opType,
    hint: hasAlpha ? 'Use the adapter at run time' : 'Merge into the unquantized export and quantize the result',
  })
}
