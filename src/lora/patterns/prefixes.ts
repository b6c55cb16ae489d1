// Alternatives that begin alike, such as the full names of a thousand layers, share what they begin with: a text is then compared
// with it once, and not once for each of them. Their order stays, which decides between several matches.

import type { Expression } from './expression-tree.js'

/** The alternatives as one expression. */
export function choiceOf(options: readonly Expression[]): Expression {
  return factored(options.map((option) => (option.kind === 'sequence' ? option.items : [option])))
}

function factored(options: readonly (readonly Expression[])[]): Expression {
  const result: Expression[] = []
  for (let at = 0; at < options.length; ) {
    let end = at + 1
    while (end < options.length && isAlike(options[at][0], options[end][0])) end++
    const run = options.slice(at, end)
    const length = end - at === 1 ? run[0].length : commonLength(run)
    const rests = run.map((items) => items.slice(length))
    const items = [...run[0].slice(0, length), ...(end - at === 1 ? [] : [factored(rests)])]
    result.push(items.length === 1 ? items[0] : { kind: 'sequence', items })
    at = end
  }
  return result.length === 1 ? result[0] : { kind: 'choice', options: result }
}

function commonLength(options: readonly (readonly Expression[])[]): number {
  const [first] = options
  let length = 0
  while (length < first.length && options.every((items) => isAlike(first[length], items[length]))) length++
  return length
}

/** Whether both are the same single character. */
function isAlike(one: Expression | undefined, other: Expression | undefined): boolean {
  return one?.kind === 'character' && other?.kind === 'character' && one.code !== undefined && one.code === other.code
}
