// The names of experts that are modules of their own. A GGUF file has one tensor for all experts of a layer.

/** Module of the layer, number of the expert, part of the expert. */
export const EXPERT = /^(.*)\.experts\.(\d+)\.(\w+)$/

/** Mixtral's experts have special names in llama.cpp's tables. */
export function stackedModule([, module, , part]: RegExpExecArray): string {
  const layer = /\.(\d+)\.block_sparse_moe$/.exec(module)?.[1]
  return layer !== undefined && /^w[123]$/.test(part)
    ? `layers.${layer}.feed_forward.experts.${part}`
    : `${module}.experts.${part}`
}
