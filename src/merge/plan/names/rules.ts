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

type Renaming = readonly [name: string, stored: string]

/** Rules `name>stored`: of the beginnings of a name, in whole parts, the longest counts; `#` is any number. */
export class NameRules {
  readonly #rules: readonly { readonly start: RegExp; readonly depth: number; readonly stored: string }[]

  constructor(private readonly renamings: readonly Renaming[]) {
    const numbers = (name: string) => name.split('#').length
    this.#rules = [...new Map([['', ''], ...renamings])]
      .map(([name, stored]) => ({ name, stored, depth: name === '' ? 0 : name.split('.').length }))
      .sort((a, b) => b.depth - a.depth || numbers(a.name) - numbers(b.name))
      .map(({ name, ...rule }) => ({ ...rule, start: startOf(name) }))
  }

  /** Undefined for a form that cannot be told in these terms. */
  form(name: string): StoredForm | undefined {
    const { start, depth, stored } = this.#rules.find((rule) => rule.start.test(name))!
    if (stored === UNKNOWN_FORM) return undefined
    const numbers = start.exec(name)!.slice(1)
    const rest = name.split('.').slice(depth)
    const [, names, first, rows, total] = /^(.*?)\^?(?:\[(\d+):(\d+):(\d+)\])?$/.exec(stored)!
    const tensors = names.split('|').map((one) => {
      let i = 0
      const own = one.replaceAll(/(?<![^.])#(?![^.])/g, () => numbers[i++] ?? '#')
      return [...(own === '' ? [] : [own]), ...rest].join('.')
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
