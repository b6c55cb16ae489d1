// Modules that some checkpoints keep as one and others apart. How the parts lie in the whole differs by model (one
// below the other, by head, by group of heads), so that an adapter of the one is not merged into the other, but told
// why.

/** Content that belongs together, names of the one module, and names of the separate ones. */
const FUSIONS: readonly (readonly [content: string, whole: RegExp, parts: RegExp])[] = [
  [
    'queries, keys and values',
    /(^|\.)(qkv_proj|query_key_value|c_attn|[Ww]qkv|W_pack|qkv)$/,
    /(^|\.)([qkv]_(proj|lin)|query|key|value|w?[qkv])$/,
  ],
  ['gate and up projection', /(^|\.)(gate_up_proj|gate_up)$/, /(^|\.)(gate_proj|up_proj|w1|w3)$/],
]

/**
 * Why a module is not in the base, when the base has the same weights fused or apart, in the same block of the model;
 * undefined when that is not so.
 *
 * @param modules of the base
 */
export function fusionHint(missing: string, modules: readonly string[]): string | undefined {
  const block = blockOf(missing)
  const own = missing.slice(missing.lastIndexOf('.') + 1)
  for (const [content, whole, parts] of FUSIONS) {
    const [isWhole, isPart] = [whole.test(missing), parts.test(missing)]
    if (!isWhole && !isPart) continue
    const near = modules.filter((module) => blockOf(module) === block && (isPart ? whole : parts).test(module))
    if (near.length === 0) continue
    const how = isPart ? `in one module, ${near[0]}` : `apart, in ${near.join(', ')}`
    const which = isPart ? 'that' : 'those'
    return `The base has ${content} ${how}: train the adapter on ${which}, or merge into a base that has ${own}`
  }
  return undefined
}

/** Up to the last number: a layer of the model. Without one, the parent. */
function blockOf(module: string): string {
  return /^.*\.\d+(?=\.)|^\d+(?=\.)/.exec(module)?.[0] ?? module.slice(0, Math.max(0, module.lastIndexOf('.')))
}
