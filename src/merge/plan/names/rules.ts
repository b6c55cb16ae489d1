// The names of a model's tensors in a checkpoint, by rules for beginnings of names (transformers' conversion_mapping).

export interface StoredForm {
  /** The rows of the first, then those of the next. `*` is the number of an expert, which has a tensor of its own. */
  readonly tensors: readonly string[]
  /** Each matrix is stored the other way round than the model holds it. */
  readonly isTurned: boolean
  /** The tensor has more than this: its rows from first/total on, rows/total of them. */
  readonly share: { readonly first: number; readonly rows: number; readonly total: number } | undefined
}

const UNKNOWN_FORM = '!'

interface Node {
  readonly children: Map<string, Node>
  stored: string | undefined
}

const NUMBER = /^\d+$/

/** Rules `name>stored`: of the beginnings of a name, in whole parts, the longest counts; `#` is any number. */
export class NameRules {
  readonly #root: Node = { children: new Map(), stored: '' }
  readonly #rules: readonly (readonly [name: string, stored: string])[]

  constructor(rules: readonly (readonly [name: string, stored: string])[]) {
    this.#rules = rules
    for (const [name, stored] of rules) {
      let node = this.#root
      for (const part of name === '' ? [] : name.split('.')) {
        const next = node.children.get(part) ?? { children: new Map(), stored: undefined }
        node.children.set(part, next)
        node = next
      }
      node.stored = stored
    }
  }

  /** Undefined for a form that cannot be told in these terms. */
  form(name: string): StoredForm | undefined {
    const parts = name.split('.')
    const { stored, depth, numbers } = longest(this.#root, parts, 0, [])
    if (stored === UNKNOWN_FORM) return undefined
    const [, names, first, rows, total] = /^(.*?)\^?(?:\[(\d+):(\d+):(\d+)\])?$/.exec(stored)!
    const tensors = names.split('|').map((one) => {
      let i = 0
      const own = one.replaceAll(/(?<![^.])#(?![^.])/g, () => numbers[i++] ?? '#')
      return [...(own === '' ? [] : [own]), ...parts.slice(depth)].join('.')
    })
    const share = first === undefined ? undefined : { first: Number(first), rows: Number(rows), total: Number(total) }
    return { tensors, isTurned: stored.includes('^'), share }
  }

  reversed(): NameRules {
    const renaming = this.#rules.filter(([, stored]) => !/[!*|^[]/.test(stored))
    return new NameRules(renaming.map(([name, stored]) => [stored, name] as const))
  }
}

interface Found {
  stored: string
  depth: number
  numbers: readonly string[]
}

function longest(node: Node, parts: readonly string[], depth: number, numbers: readonly string[]): Found {
  const own = { stored: node.stored ?? '', depth: node.stored === undefined ? -1 : depth, numbers }
  if (depth === parts.length) return own
  const part = parts[depth]
  const literal = node.children.get(part)
  const any = NUMBER.test(part) ? node.children.get('#') : undefined
  const found = [
    ...(literal === undefined ? [] : [longest(literal, parts, depth + 1, numbers)]),
    ...(any === undefined ? [] : [longest(any, parts, depth + 1, [...numbers, part])]),
  ]
  return found.reduce((best, other) => (other.depth > best.depth ? other : best), own)
}

/** As the generated tables have it: each side of a line shares so many characters (base 36) with the line before. */
export function parseRules(text: string): NameRules {
  let before: readonly string[] = ['', '']
  const rules = text.split('\n').map((line) => {
    const both = line
      .split('>')
      .map((coded, side) => before[side].slice(0, Number.parseInt(coded[0], 36)) + coded.slice(1))
    before = both
    return [both[0], both[1]] as const
  })
  return new NameRules(rules)
}
