// Names of operators in tables and of nodes in messages.

import type { NodeProto } from '../format/tensors.js'

/** Returns the type, as `domain:type` outside the standard domain. */
export function operatorOf({ domain, opType }: Pick<NodeProto, 'domain' | 'opType'>): string {
  return domain === '' || domain === 'ai.onnx' ? opType : `${domain}:${opType}`
}

export function labelOf(node: NodeProto): string {
  return `node ${nameOf(node)} (${node.opType})`
}

export function nameOf({ name, output }: NodeProto): string {
  return name || output[0]
}

const SHOWN_NODES = 3

/** Looks up a name from a file, which may be `toString` or `__proto__`. */
export function entryOf<T>(table: Readonly<Record<string, T>>, name: string): T | undefined {
  return Object.hasOwn(table, name) ? table[name] : undefined
}

/** Lists nodes as `Op (node, node and 2 more); Other (node)`. */
export function listByOperator(found: Iterable<readonly [operator: string, node: NodeProto]>): string {
  const names = new Map<string, string[]>()
  for (const [operator, node] of found) names.set(operator, [...(names.get(operator) ?? []), nameOf(node)])
  const entries = [...names].map(([operator, nodes]) => {
    const more = nodes.length > SHOWN_NODES ? ` and ${nodes.length - SHOWN_NODES} more` : ''
    return `${operator} (${nodes.slice(0, SHOWN_NODES).join(', ')}${more})`
  })
  return entries.join('; ')
}

export const PREDICATES: readonly string[] =
  'And Equal Greater GreaterOrEqual IsInf IsNaN Less LessOrEqual Not Or Xor'.split(' ')
