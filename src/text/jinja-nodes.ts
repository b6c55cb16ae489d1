// The parsed form of a template, as @huggingface/jinja has it: walking through its nodes.

/** A node. Fields beside its type depend on it. */
export interface Node {
  type: string
  [field: string]: unknown
}

function isNode(value: unknown): value is Node {
  return typeof value === 'object' && value !== null && typeof (value as Node).type === 'string'
}

/** The nodes directly inside a node: in fields, lists and maps. */
export function* childrenOf(node: Node): Generator<Node> {
  for (const value of Object.values(node)) {
    const items = value instanceof Map ? [...value.keys(), ...value.values()] : Array.isArray(value) ? value : [value]
    for (const item of items) if (isNode(item)) yield item
  }
}

/** A node and all inside it. */
export function* nodesIn(node: Node): Generator<Node> {
  yield node
  for (const child of childrenOf(node)) yield* nodesIn(child)
}

/** The name of a variable; undefined for other nodes. */
export function variableName(node: unknown): string | undefined {
  return isNode(node) && node.type === 'Identifier' ? (node.value as string) : undefined
}
