// Finds the names of a model's tensors in a checkpoint, by rules for how names begin (transformers'
// conversion_mapping).

export interface StoredForm {
  /** The tensors whose rows together are the weight, in order. `*` stands for the number of an expert. */
  readonly tensors: readonly string[]
  /** True if each matrix is stored transposed. */
  readonly isTurned: boolean
  /** If the weight is a part of a larger tensor: the rows from first/total on, rows/total of them. */
  readonly share: { readonly first: number; readonly rows: number; readonly total: number } | undefined
}

const UNKNOWN_FORM = '!'

type Renaming = readonly [name: string, stored: string]

/** Rules `name>stored`. The rule with the longest beginning of a name counts, in whole parts; `#` is any number. */
export class NameRules {
  readonly #rules: readonly { readonly start: RegExp; readonly depth: number; readonly stored: string }[]

  constructor(private readonly renamings: readonly Renaming[]) {
    const numbers = (name: string) => name.split('#').length
    this.#rules = [...new Map([['', ''], ...renamings])]
      .map(([name, stored]) => ({ name, stored, depth: name === '' ? 0 : name.split('.').length }))
      .sort((a, b) => b.depth - a.depth || numbers(a.name) - numbers(b.name))
      .map(({ name, ...rule }) => ({ ...rule, start: startOf(name) }))
  }

  /** Returns how a tensor is stored, or undefined if the rules cannot express its form. */
  form(name: string): StoredForm | undefined {
    const { start, depth, stored } = this.#rules.find((rule) => rule.start.test(name))!
    if (stored === UNKNOWN_FORM) return undefined
    const numbers = start.exec(name)!.slice(1)
    const rest = name.split('.').slice(depth)
    const [, names, first, rows, total] = /^(.*?)\^?(?:\[(\d+):(\d+):(\d+)\])?$/.exec(stored)!
    const tensors = names.split('|').map((name) => {
      let i = 0
      const numbered = name.replaceAll(/(?<![^.])#(?![^.])/g, () => numbers[i++] ?? '#')
      return [...(numbered === '' ? [] : [numbered]), ...rest].join('.')
    })
    const share = first === undefined ? undefined : { first: Number(first), rows: Number(rows), total: Number(total) }
    return { tensors, isTurned: stored.includes('^'), share }
  }

  reversed(): NameRules {
    const renamings = this.renamings.filter(([, stored]) => !/[!*|^[]/.test(stored))
    return new NameRules(renamings.map(([name, stored]) => [stored, name] as const))
  }
}

function startOf(name: string): RegExp {
  const parts = name.split('.').map((part) => (part === '#' ? '(\\d+)' : part.replace(/[^\w-]/g, '\\$&')))
  return new RegExp(name === '' ? '' : `^${parts.join('\\.')}(?![^.])`)
}

/**
 * Parses rules. Each side of a line begins with the number of characters (base 36) that it shares with the line before.
 */
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
