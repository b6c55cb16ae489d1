// JavaScript's regular expressions as trees: what is needed to tell how long one can take.

/** One node. */
export type Node =
  /** One character; `source` is the expression of it alone. */
  | { readonly kind: 'character'; readonly source: string }
  | { readonly kind: 'sequence'; readonly items: readonly Node[] }
  | { readonly kind: 'choice'; readonly options: readonly Node[] }
  | { readonly kind: 'repeat'; readonly item: Node; readonly min: number; readonly max: number }
  /** Takes no character, and may fail; `item` is what is looked for around it. */
  | { readonly kind: 'assertion'; readonly item: Node | undefined }

const CHARACTER =
  /^(?:\\(?:[pP]\{[^}]*\}|u\{[0-9a-fA-F]+\}|u[dD][89abAB][0-9a-fA-F]{2}\\u[dD][c-fC-F][0-9a-fA-F]{2}|u[0-9a-fA-F]{4}|x[0-9a-fA-F]{2}|c[A-Za-z]|[^bBk1-9])|\[(?:\\[\s\S]|[^\]\\])*\]|[^()|*+?\\^$])/u
const QUANTIFIER = /^(?:([*+?])|\{(\d+)(,(\d*))?\})\??/
const GROUP = /^\((?:\?(?:(<?[=!])|<[^>]*>|[a-z]*(?:-[a-z]+)?:))?/
const POSITION = /^(?:[\^$]|\\[bB])/
const MAX_DEPTH = 100

/** @returns undefined for one that has references, or is nested too deep */
export function parseRegExp({ source }: RegExp): Node | undefined {
  let rest = source
  let depth = 0
  const take = (expression: RegExp) => {
    const match = expression.exec(rest)
    if (match !== null) rest = rest.slice(match[0].length)
    return match
  }
  const choice = (): Node | undefined => {
    if (++depth > MAX_DEPTH) return undefined
    const options: Node[] = []
    do {
      const option = sequence()
      if (option === undefined) return undefined
      options.push(option)
    } while (take(/^\|/) !== null)
    depth--
    return options.length === 1 ? options[0] : { kind: 'choice', options }
  }
  const sequence = (): Node | undefined => {
    const items: Node[] = []
    while (rest !== '' && !/^[|)]/.test(rest)) {
      const item = atom()
      if (item === undefined) return undefined
      const quantifier = take(QUANTIFIER)
      items.push(quantifier === null ? item : repeated(item, quantifier))
    }
    return { kind: 'sequence', items }
  }
  const atom = (): Node | undefined => {
    const group = take(GROUP)
    if (group !== null) {
      const item = choice()
      if (item === undefined || take(/^\)/) === null) return undefined
      return group[1] === undefined ? item : { kind: 'assertion', item }
    }
    if (take(POSITION) !== null) return { kind: 'assertion', item: undefined }
    const character = take(CHARACTER)
    return character === null ? undefined : { kind: 'character', source: character[0] }
  }
  const result = choice()
  return rest === '' ? result : undefined
}

function repeated(item: Node, [, sign, low, comma, high]: RegExpExecArray): Node {
  if (sign !== undefined) {
    return { kind: 'repeat', item, min: sign === '+' ? 1 : 0, max: sign === '?' ? 1 : Number.POSITIVE_INFINITY }
  }
  const min = Number(low)
  const max = comma === undefined ? min : high === '' ? Number.POSITIVE_INFINITY : Number(high)
  return { kind: 'repeat', item, min, max }
}
