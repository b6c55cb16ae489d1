// The generated tables of transformers' models by their type: names in checkpoints, tied weights, heads.

import { type NameRules, parseRules } from './rules.js'

export interface NameEntry {
  readonly rules: NameRules
  /** The part of names that holds the model without its head; empty where there is none. */
  readonly prefix: string
  readonly isInside: boolean
}

/** Two tensors that transformers makes one: names as the model has them. */
export interface ModelTie {
  readonly target: string
  readonly source: string
  /** The way in config.json to the part whose tie_word_embeddings says so. */
  readonly path: readonly string[]
  /** The setting if config.json has none. */
  readonly isDefault: boolean
}

/** Tensors that a model with a head for a task has, and a pretrained one need not have. */
export interface ModelHead {
  readonly architecture: string
  readonly tensors: readonly string[]
  readonly labelled: readonly string[]
}

export type ModelTables = ReturnType<typeof readTables>

/** The script that makes the generated file says how to read it. */
interface GeneratedTables {
  readonly rules: readonly string[]
  readonly names: Readonly<Record<string, string>>
  readonly ties: Readonly<Record<string, string>>
  readonly heads: Readonly<Record<string, Readonly<Record<string, string>>>>
  readonly types: string
}

const ENDINGS: Readonly<Record<string, string>> = {
  SEQ_CLS: 'ForSequenceClassification',
  TOKEN_CLS: 'ForTokenClassification',
  QUESTION_ANS: 'ForQuestionAnswering',
}

let loading: Promise<ModelTables> | undefined

export function loadTables(): Promise<ModelTables> {
  loading ??= import('./gen/tables.js').then(({ TABLES }) => readTables(TABLES))
  return loading
}

interface TypeEntry {
  readonly stem: string
  /** For `$.` in names. */
  readonly prefix: string
}

function readTables({ rules, names, ties, heads, types }: GeneratedTables) {
  const known = new Map(types.split(' ').map(parseType))
  const parsed = new Map<number, NameRules>()
  const rulesAt = (index: number) => {
    const own = parsed.get(index) ?? parseRules(rules[index])
    parsed.set(index, own)
    return own
  }
  return {
    isKnown: (type: string) => known.has(type),
    names: (type: string): readonly NameEntry[] =>
      Object.hasOwn(names, type) ? names[type].split(' ').map((one) => nameEntry(one, rulesAt)) : [],
    isClassOf: (name: string, type: string) => name.startsWith(known.get(type)?.stem ?? `${name}.`),
    ties: (type: string): ReadonlyMap<string, readonly ModelTie[]> => {
      const result = new Map<string, readonly ModelTie[]>()
      const entry = known.get(type)
      if (entry === undefined) return result
      for (const [text, owners] of Object.entries(ties)) {
        for (const owner of owners.split(' ')) {
          const [own, rest = 'ForCausalLM'] = owner.split(':')
          if (own === type)
            result.set(
              entry.stem + rest,
              text.split('\n').map((one) => parseTie(one, entry)),
            )
        }
      }
      return result
    },
    head: (type: string, task: string): ModelHead | undefined => {
      const entry = known.get(type)
      if (entry === undefined || !Object.hasOwn(heads, task)) return undefined
      const found = Object.entries(heads[task]).find(([, owners]) => owners.split(' ').includes(type))
      if (found === undefined) return undefined
      const all = found[0].split(' ').map((name) => whole(name, entry))
      return {
        architecture: entry.stem + ENDINGS[task],
        tensors: all.map((name) => name.replace('*', '')),
        labelled: all.flatMap((name) => (name.endsWith('*') ? name.slice(0, -1) : [])),
      }
    },
  }
}

/** `bert::bert`: no stem is the type itself in capitals, no prefix is `model`, and `-` is none. */
function parseType(text: string): [type: string, entry: TypeEntry] {
  const [type, stem = '', prefix = ''] = text.split(':')
  const usual = type.split(/[-_]/).map((part) => part.slice(0, 1).toUpperCase() + part.slice(1))
  return [type, { stem: stem === '' ? usual.join('') : stem, prefix: prefix === '' ? 'model' : prefix }]
}

function whole(name: string, { prefix }: TypeEntry): string {
  return name.startsWith('$.') ? prefix + name.slice(1) : name
}

/** `3`, `3=vit` for rules of what follows `vit.`, `3~model` for whole names beside which the prefix is known. */
function nameEntry(text: string, rulesAt: (index: number) => NameRules): NameEntry {
  const [, index, kind, prefix = ''] = /^(\d+)([=~])?(.*)$/.exec(text)!
  return { rules: rulesAt(Number(index)), prefix, isInside: kind === '=' }
}

/** `target=source@text_config+!`; the `!` stands for models that tie whatever config.json says. */
function parseTie(text: string, entry: TypeEntry): ModelTie {
  const [, target, source, path = '', isDefault] = /^([^=]+)=([^@+!]+)(?:@([^+!]+))?(\+)?/.exec(text)!
  const both = { target: whole(target, entry), source: whole(source, entry) }
  return { ...both, path: path === '' ? [] : path.split('.'), isDefault: isDefault !== undefined }
}
