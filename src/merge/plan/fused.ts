// Modules that some checkpoints keep as one and others apart. How the parts lie in the whole differs by model (one
// below the other, by head, by group of heads), so that an adapter of the one is not merged into the other, but told
// why.

interface Fusion {
  readonly content: string
  /** Names of the one module. */
  readonly whole: readonly string[]
  /** Names of the separate ones. */
  readonly parts: readonly (readonly string[])[]
}

const FUSIONS: readonly Fusion[] = [
  {
    content: 'queries, keys and values',
    whole: ['qkv_proj', 'query_key_value', 'c_attn', 'Wqkv', 'wqkv', 'W_pack', 'qkv'],
    parts: [
      ['q_proj', 'k_proj', 'v_proj'],
      ['query', 'key', 'value'],
      ['q_lin', 'k_lin', 'v_lin'],
      ['wq', 'wk', 'wv'],
      ['q', 'k', 'v'],
    ],
  },
  {
    content: 'gate and up projection',
    whole: ['gate_up_proj', 'gate_up'],
    parts: [
      ['gate_proj', 'up_proj'],
      ['w1', 'w3'],
    ],
  },
]

/**
 * Why a module is not in the base, when the base has the same weights fused or apart, in the same block of the model;
 * undefined when that is not so.
 *
 * @param modules of the base
 */
export function fusionHint(missing: string, modules: readonly string[]): string | undefined {
  const own = lastPart(missing)
  const block = blockOf(missing)
  const near = modules.filter((module) => blockOf(module) === block)
  const named = (names: readonly string[]) =>
    names.flatMap((name) => near.filter((module) => lastPart(module) === name))
  for (const { content, whole, parts } of FUSIONS) {
    if (parts.some((names) => names.includes(own))) {
      const [fused] = named(whole)
      if (fused === undefined) continue
      return `The base has ${content} in one module, ${fused}: train the adapter on that, or merge into a base that has ${own}`
    }
    if (!whole.includes(own)) continue
    const separate = parts.map(named).find((found) => found.length > 0)
    if (separate === undefined) continue
    return `The base has ${content} apart, in ${separate.join(', ')}: train the adapter on those, or merge into a base that has ${own}`
  }
  return undefined
}

/** Up to the last number: a layer of the model. Without one, the parent. */
function blockOf(module: string): string {
  return /^.*\.\d+(?=\.)|^\d+(?=\.)/.exec(module)?.[0] ?? module.slice(0, Math.max(0, module.lastIndexOf('.')))
}

function lastPart(module: string): string {
  return module.slice(module.lastIndexOf('.') + 1)
}
