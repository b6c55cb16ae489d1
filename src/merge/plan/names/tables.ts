// Reads the generated tables of transformers' models: names in checkpoints, tied weights, and heads, by model type.

import { type NameRules, parseRules } from './rules.js'

export interface NameEntry {
  readonly rules: NameRules
  /** The part of names for the model without its head; empty if there is no such part. */
  readonly prefix: string
  readonly isInside: boolean
}

/** Two tensors that transformers ties, by their names in the model. */
export interface ModelTie {
  readonly target: string
  readonly source: string
  /** The path in config.json to the part whose tie_word_embeddings decides. */
  readonly path: readonly string[]
  /** The default if config.json does not say. */
  readonly isDefault: boolean
}

/** The tensors of the head for a task, which a pretrained model may lack. */
export interface ModelHead {
  readonly architecture: string
  readonly tensors: readonly string[]
  readonly labelled: readonly string[]
}

export type ModelTables = ReturnType<typeof readTables>

/** The generated file. The script that makes it describes its format. */
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

export async function loadTables(): Promise<ModelTables> {
  return readTables((await import('./gen/tables.js')).TABLES)
}

interface TypeEntry {
  readonly stem: string
  /** For `$.` in names. */
  readonly prefix: string
}

function readTables({ rules, names, ties, heads, types }: GeneratedTables) {
  const known = new Map(types.split(' ').map(parseType))
  return {
    isKnown: (type: string) => known.has(type),
    names: (type: string): readonly NameEntry[] =>
      Object.hasOwn(names, type) ? names[type].split(' ').map((text) => nameEntry(text, rules)) : [],
    isClassOf: (name: string, type: string) => name.startsWith(known.get(type)?.stem ?? `${name}.`),
    ties: (type: string): ReadonlyMap<string, readonly ModelTie[]> => {
      const result = new Map<string, readonly ModelTie[]>()
      const entry = known.get(type)
      if (entry === undefined) return result
      for (const [text, owners] of Object.entries(ties)) {
        for (const owner of owners.split(' ')) {
          const [ownerType, rest = 'ForCausalLM'] = owner.split(':')
          if (ownerType === type)
            result.set(
              entry.stem + rest,
              text.split('\n').map((line) => parseTie(line, entry)),
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

/**
 * Parses `type:stem:prefix`. An empty stem means the type in camel case, an empty prefix `model`, and `-` no prefix.
 */
function parseType(text: string): [type: string, entry: TypeEntry] {
  const [type, stem = '', prefix = ''] = text.split(':')
  const usual = type.split(/[-_]/).map((part) => part.slice(0, 1).toUpperCase() + part.slice(1))
  return [type, { stem: stem === '' ? usual.join('') : stem, prefix: prefix === '' ? 'model' : prefix }]
}

function whole(name: string, { prefix }: TypeEntry): string {
  return name.startsWith('$.') ? prefix + name.slice(1) : name
}

/** Parses `3`; `3=vit`, with rules for names after `vit.`; or `3~model`, for whole names and a known prefix. */
function nameEntry(text: string, rules: readonly string[]): NameEntry {
  const [, index, kind, prefix = ''] = /^(\d+)([=~])?(.*)$/.exec(text)!
  return { rules: parseRules(rules[Number(index)]), prefix, isInside: kind === '=' }
}

/** Parses `target=source@text_config+!`. The `!` marks models that tie weights whatever config.json says. */
function parseTie(text: string, entry: TypeEntry): ModelTie {
  const [, target, source, path = '', isDefault] = /^([^=]+)=([^@+!]+)(?:@([^+!]+))?(\+)?/.exec(text)!
  const both = { target: whole(target, entry), source: whole(source, entry) }
  return { ...both, path: path === '' ? [] : path.split('.'), isDefault: isDefault !== undefined }
}
