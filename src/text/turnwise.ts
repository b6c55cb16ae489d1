// Templates that write one message after the other, as most do: a head, the messages in a loop, and the prompt for an
// answer. If a template shows that it does so, one rendering tells where each message ends; otherwise it takes two for
// each answer.

import { childrenOf, type Node, nodesIn, variableName } from './jinja-nodes.js'

/** Stands at the end of each message: a character that Unicode reserves for a program's own use. */
export const TURN_MARK = '\ufdd2'

const PROMPT = 'add_generation_prompt'

/** Fields of a loop that a message's text may depend on: they tell what came before, never what comes. */
const BACKWARD_FIELDS = ['first', 'index', 'index0', 'previtem']

/**
 * Puts a mark at the end of each message. This is possible if two things hold: the text of the first messages is always
 * the beginning of the text of the whole chat, and the prompt for an answer follows that text.
 *
 * @returns whether both hold
 */
export function markTurns(program: Node): boolean {
  const body = (program.body as Node[]).filter(({ type }) => type !== 'Comment')
  const names = new Set(['messages'])
  for (const node of body) if (isAlias(node, names)) names.add(variableName(node.assignee) as string)
  const index = body.findIndex(({ type, iterable }) => type === 'For' && names.has(variableName(iterable) ?? ''))
  if (index < 0) return false
  const [before, loop, after] = [body.slice(0, index), body[index], body.slice(index + 1)]
  const inside = [loop.loopvar as Node, ...(loop.body as Node[])]
  const isHeadFixed = before.every((node) => isAlias(node, names) || dependsOnFirstAlone(node, names))
  if (!isHeadFixed || !inside.every((node) => dependsOnFirstAlone(node, names))) return false
  if (!inside.every(looksBackward)) return false
  if (!isPrompt(after, new Set([...names, 'loop', ...assignedIn(loop)]))) return false
  ;(loop.body as Node[]).push({ type: 'StringLiteral', value: TURN_MARK })
  return true
}

/** `set x = messages` */
function isAlias(node: Node, names: ReadonlySet<string>): boolean {
  const isSet = node.type === 'Set' && variableName(node.assignee) !== undefined
  return isSet && names.has(variableName(node.value) ?? '')
}

/** True if the node reads no message but the first, and does not ask if an answer is wanted. */
function dependsOnFirstAlone(node: Node, names: ReadonlySet<string>): boolean {
  const name = variableName(node)
  if (name !== undefined) return name !== PROMPT && !names.has(name)
  if (node.type === 'MemberExpression') {
    const { object, property, computed } = node as Node & { property: Node }
    const isFirst = computed === true && property.type === 'IntegerLiteral' && property.value === 0
    if (isFirst && names.has(variableName(object) ?? '')) return true
    // The name of a field is no variable.
    if (computed !== true) return dependsOnFirstAlone(object as Node, names)
  }
  return [...childrenOf(node)].every((child) => dependsOnFirstAlone(child, names))
}

/** True if the node reads nothing of a loop that tells how many rounds follow, and does not leave it. */
function looksBackward(node: Node): boolean {
  if (node.type === 'Break' || node.type === 'Continue' || variableName(node) === 'loop') return false
  if (node.type === 'MemberExpression' && variableName(node.object) === 'loop') {
    const { property } = node as Node & { property: Node }
    return BACKWARD_FIELDS.includes(property.value as string) && property.type !== 'IntegerLiteral'
  }
  return [...childrenOf(node)].every(looksBackward)
}

/** Variables that a loop sets. */
function* assignedIn(loop: Node): Generator<string> {
  yield* [...nodesIn(loop.loopvar as Node)].map((node) => variableName(node) ?? '')
  for (const node of nodesIn(loop)) {
    if (node.type !== 'Set') continue
    let root = node.assignee as Node
    while (root.type === 'MemberExpression') root = root.object as Node
    yield variableName(root) ?? ''
  }
}

/** True if only a prompt follows the messages, if one is asked for, and it does not depend on `variables`. */
function isPrompt(after: readonly Node[], variables: ReadonlySet<string>): boolean {
  return after.every((node) => {
    const isIf = node.type === 'If' && variableName(node.test) === PROMPT && (node.alternate as Node[]).length === 0
    return isIf && ![...nodesIn(node)].some((inner) => variables.has(variableName(inner) ?? ''))
  })
}
