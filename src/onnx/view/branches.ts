// Opens the branches of If: their nodes join the graph's list, so that layers in branches are found and changed
// like others. Writing the graph puts each node back.

import { copyMessage } from '../format/messages.js'
import { create } from '../format/protobuf.js'
import { type AttributeProto, type NodeProto, NodeProtoSchema, type TensorProto } from '../format/tensors.js'

interface Branch {
  /** The If, whose inputs are the condition and the branches' outputs. */
  readonly node: NodeProto
  readonly attribute: AttributeProto
  /** The branch that contains this If; undefined at the top of the graph. */
  readonly parent: Branch | undefined
  /** How deep the branch is nested, from 1. */
  readonly depth: number
  /** New name → name in the file, for values that were renamed because another branch has the same name. */
  readonly fileNames: Map<string, string>
}

export interface OpenedInto {
  readonly names: Set<string>
  readonly initializers: Map<string, TensorProto>
}

const SEPARATOR = '/'

export class Branches {
  readonly #of = new Map<NodeProto, Branch>()
  readonly #byIf = new Map<NodeProto, readonly Branch[]>()

  /** Puts the nodes of branches before their If. Renames values if their name is taken; constants join the graph's. */
  open(nodes: readonly NodeProto[], into: OpenedInto): NodeProto[] {
    return this.#open(nodes, into, undefined, (name) => name)
  }

  /** Returns the value that each branch of an If gives for an output; undefined for other nodes. */
  given(node: NodeProto, output: string): { name: string; value: string }[] | undefined {
    const branches = this.#byIf.get(node)
    const index = node.output.indexOf(output)
    return branches?.map(({ attribute }, i) => ({
      name: attribute.name,
      value: node.input[1 + i * node.output.length + index],
    }))
  }

  /** Returns nodes that replace an If by one of its branches. Nothing reads the other branch's nodes then. */
  take(node: NodeProto, name: string): NodeProto[] {
    const taken = this.#byIf.get(node)?.find(({ attribute }) => attribute.name === name)
    for (const [inner, branch] of this.#of) {
      if (branch !== taken) continue
      if (branch.parent === undefined) this.#of.delete(inner)
      else this.#of.set(inner, branch.parent)
    }
    return node.output.flatMap((output) => {
      const value = this.given(node, output)?.find((entry) => entry.name === name)?.value
      if (value === undefined) return []
      const handOn = create(NodeProtoSchema, { name: output, opType: 'Identity', input: [value], output: [output] })
      if (taken?.parent !== undefined) this.#of.set(handOn, taken.parent)
      return [handOn]
    })
  }

  /** Puts nodes back into their branches. A new node goes to the innermost branch that it reads from. */
  fold(sorted: readonly NodeProto[], freshName: (hint: string) => string): NodeProto[] {
    if (this.#byIf.size === 0) return [...sorted]
    const makers = new Map<string, Branch | undefined>()
    const lists = new Map<Branch | undefined, NodeProto[]>([[undefined, []]])
    for (const node of sorted) {
      const isKnown = this.#of.has(node) || this.#byIf.has(node)
      const branch = isKnown ? this.#of.get(node) : deepest(node.input.map((input) => makers.get(input)))
      for (const output of node.output) makers.set(output, branch)
      const list = lists.get(branch) ?? []
      lists.set(branch, list)
      list.push(this.#byIf.has(node) ? this.#closed(node, lists, makers, freshName) : node)
    }
    return this.#named(lists.get(undefined) as NodeProto[], makers)
  }

  #open(
    nodes: readonly NodeProto[],
    into: OpenedInto,
    parent: Branch | undefined,
    nameOf: (name: string) => string,
  ): NodeProto[] {
    return nodes.flatMap((node) => {
      const copy = copyMessage(node, { input: node.input.map(nameOf), output: node.output.map(nameOf) })
      copy.attribute = [...node.attribute]
      if (parent !== undefined) this.#of.set(copy, parent)
      if (!isOpenable(node)) return [copy]
      const branches: Branch[] = []
      copy.attribute = []
      const inner = node.attribute.flatMap((attribute) => {
        const depth = (parent?.depth ?? 0) + 1
        const branch: Branch = { node: copy, attribute, parent, depth, fileNames: new Map() }
        branches.push(branch)
        return this.#openBranch(branch, into, nameOf)
      })
      this.#byIf.set(copy, branches)
      return [...inner, copy]
    })
  }

  #openBranch(branch: Branch, into: OpenedInto, outerName: (name: string) => string): NodeProto[] {
    const { node: ifNode, attribute } = branch
    const graph = attribute.g as NonNullable<AttributeProto['g']>
    const local = new Map<string, string>()
    const rename = (name: string): string => {
      let free = name
      for (let i = 1; into.names.has(free); i++) free = `${name}${SEPARATOR}${attribute.name}${i === 1 ? '' : `_${i}`}`
      into.names.add(free)
      local.set(name, free)
      return free
    }
    for (const tensor of graph.initializer) {
      const name = rename(tensor.name)
      into.initializers.set(name, name === tensor.name ? tensor : copyMessage(tensor, { name }))
    }
    for (const output of graph.node.flatMap((node) => node.output)) {
      if (output === '') continue
      const name = rename(output)
      // Keep the new name if a constant of another branch has joined the graph under the old one.
      if (name !== output && !into.initializers.has(output)) branch.fileNames.set(name, output)
    }
    const nameOf = (name: string) => (name === '' ? '' : (local.get(name) ?? outerName(name)))
    const nodes = this.#open(graph.node, into, branch, nameOf)
    ifNode.input.push(...graph.output.map(({ name }) => nameOf(name)))
    return nodes
  }

  #closed(
    node: NodeProto,
    lists: ReadonlyMap<Branch | undefined, NodeProto[]>,
    makers: ReadonlyMap<string, Branch | undefined>,
    freshName: (hint: string) => string,
  ): NodeProto {
    const branches = this.#byIf.get(node) as readonly Branch[]
    const attribute = branches.map((branch, i) => {
      const graph = branch.attribute.g as NonNullable<AttributeProto['g']>
      const nodes = [...(lists.get(branch) ?? [])]
      const output = graph.output.map((info, j) => {
        const value = node.input[1 + i * graph.output.length + j]
        if (makers.get(value) === branch) return copyMessage(info, { name: value })
        // A branch may not output a value of the graph around it directly.
        const name = freshName(`${value}/given`)
        nodes.push(create(NodeProtoSchema, { name, opType: 'Identity', input: [value], output: [name] }))
        return copyMessage(info, { name })
      })
      return copyMessage(branch.attribute, { g: copyMessage(graph, { node: nodes, output, initializer: [] }) })
    })
    return copyMessage(node, { input: node.input.slice(0, 1), attribute })
  }

  #named(nodes: readonly NodeProto[], makers: ReadonlyMap<string, Branch | undefined>): NodeProto[] {
    const nameOf = (name: string): string => makers.get(name)?.fileNames.get(name) ?? name
    return nodes.map((node) =>
      copyMessage(node, {
        input: node.input.map(nameOf),
        output: node.output.map(nameOf),
        attribute: node.attribute.map((attribute) => {
          const { g } = attribute
          if (g === undefined || node.opType !== 'If') return attribute
          const output = g.output.map((info) => copyMessage(info, { name: nameOf(info.name) }))
          return copyMessage(attribute, { g: copyMessage(g, { node: this.#named(g.node, makers), output }) })
        }),
      }),
    )
  }
}

/** Not if it contains Loop or Scan: their bodies read outer values by names, which opening may change. */
function isOpenable(node: NodeProto): boolean {
  return (
    node.opType === 'If' &&
    node.attribute.every(
      ({ g }) => g?.node.every((inner) => inner.attribute.every(isPlain) || isOpenable(inner)) ?? false,
    )
  )
}

function isPlain({ g, graphs }: AttributeProto): boolean {
  return g === undefined && graphs.length === 0
}

function deepest(branches: readonly (Branch | undefined)[]): Branch | undefined {
  let result: Branch | undefined
  for (const branch of branches) if ((branch?.depth ?? 0) > (result?.depth ?? 0)) result = branch
  return result
}
