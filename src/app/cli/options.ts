// Describes commands as data, and parses their options with Node's parser, because other parsers ignore unknown options
// or do not allow an option twice.

import { existsSync } from 'node:fs'
import { parseArgs } from 'node:util'
import { hintOn } from '../../core/base/options.js'
import { adviceOn, meantBy } from '../../core/base/words.js'

/** The error for a wrong command line: exit code 2. */
export class UsageError extends Error {
  override readonly name = 'UsageError'
}

export interface Occurrence {
  flag: string
  value: string
}

export interface Option<T> {
  /** The word for the value in the help. Without it, the option is a switch without a value. */
  placeholder?: string
  about: string
  fallback?: string
  bounds?: string
  isRequired?: boolean
  isRepeatable?: boolean
  /** Turns the option's occurrences into the value that the command receives. A switch has empty values. */
  read(occurrences: Occurrence[]): T
}

// biome-ignore lint/suspicious/noExplicitAny: each option has its own type of value
export type Options = Record<string, Option<any>>
export type Values<O extends Options> = { [K in keyof O]: O[K] extends Option<infer T> ? T : never }

export interface Command<O extends Options = Options> {
  name: string
  summary: string
  about: string
  /** Sections of the help that show options, in this order. Options in no section come last. Default: one section. */
  sections?: Readonly<Record<string, readonly (keyof O & string)[]>>
  /** More sections of the help, whose text has to be loaded first: lines by the title of the section. */
  more?(): Promise<Readonly<Record<string, readonly string[]>>>
  examples: readonly string[]
  subject?: readonly (keyof O & string)[]
  options: O
  apiNames?: Readonly<Record<string, keyof O & string>>
  run(values: Values<O>, context: { occurrences: Occurrence[] }): Promise<number>
}

export function defineCommand<const O extends Options>(command: Command<O>): Command {
  return command as unknown as Command
}

export function toggle(about: string): Option<boolean> {
  return { about, read: (occurrences) => occurrences.length > 0 }
}

export function text(placeholder: string, about: string, fallback?: string): Option<string | undefined> {
  return { placeholder, about, fallback, read: (occurrences) => occurrences.at(-1)?.value }
}

export function required(placeholder: string, about: string): Option<string> {
  return { placeholder, about, isRequired: true, read: (occurrences) => occurrences.at(-1)!.value }
}

export function repeated(placeholder: string, about: string): Option<string[]> {
  return { placeholder, about, isRepeatable: true, read: (occurrences) => occurrences.map(({ value }) => value) }
}

export function choice<const C extends string, const F extends C | undefined = undefined>(
  values: readonly C[],
  about: string,
  fallback?: F,
): Option<C | F> {
  return {
    placeholder: values.join('|'),
    about,
    fallback,
    read(occurrences) {
      const last = occurrences.at(-1)
      if (last === undefined) return fallback as F
      if ((values as readonly string[]).includes(last.value)) return last.value as C
      const hint = hintOn(last.value, values, keyOf(last.flag))
      throw new UsageError(`${last.flag} is one of ${values.join(', ')}; got '${last.value}'${hint ? `. ${hint}` : ''}`)
    },
  }
}

export function single<T>(
  placeholder: string,
  about: string,
  read: (occurrence: Occurrence) => T,
): Option<T | undefined> {
  return { placeholder, about, read: (occurrences) => occurrences.map((occurrence) => read(occurrence)).at(-1) }
}

export function readNumber({ flag, value }: Occurrence): number {
  if (/^[+-]?(\d+\.?\d*|\.\d+)(e[+-]?\d+)?$/i.test(value)) {
    const number = Number(value)
    if (Number.isFinite(number)) return number
  }
  throw new UsageError(`${flag} takes a number, such as 8, 0.5 or 1e-3; got '${value}'`)
}

export function flagOf(key: string): string {
  return `--${key.replace(/[A-Z]/g, (letter) => `-${letter.toLowerCase()}`)}`
}

function keyOf(flag: string): string {
  return flag.replace(/^-+/, '').replaceAll(/-(\w)/g, (_, letter: string) => letter.toUpperCase())
}

export function parseCommand(command: Command, args: readonly string[]) {
  const { options } = command
  const occurrences = findOccurrences(command, args)
  for (const [key, { isRequired, placeholder }] of Object.entries(options)) {
    if (isRequired && !occurrences.some(({ flag }) => flag === flagOf(key))) {
      throw new UsageError(`${flagOf(key)} ${placeholder} is missing`)
    }
  }
  const values = Object.fromEntries(
    Object.entries(options).map(([key, option]) => {
      return [key, option.read(occurrences.filter(({ flag }) => flag === flagOf(key)))]
    }),
  )
  return { values, occurrences }
}

const DATA_FILE = /\.(jsonl?|csv|tsv|parquet|txt)(\.gz)?$/i

function findOccurrences({ name, options, subject = [] }: Command, args: readonly string[]): Occurrence[] {
  const byFlag = new Map(Object.entries(options).map(([key, option]) => [flagOf(key), option]))
  const alias = aliasOf(options)
  if (alias !== undefined) byFlag.set(alias.flag, options[alias.key])
  const { tokens } = parseArgs({
    args: [...args],
    strict: false,
    allowPositionals: true,
    tokens: true,
    options: Object.fromEntries(
      [...byFlag].map(([flag, { placeholder }]) => [
        flag.slice(2),
        { type: placeholder === undefined ? 'boolean' : 'string' } as const,
      ]),
    ),
  })
  const occurrences: Occurrence[] = []
  /** The option that stands before an argument, with its value. */
  let last: Occurrence | undefined
  const isGiven = (key: string) => !options[key].isRepeatable && occurrences.some(({ flag }) => flag === flagOf(key))
  const meantWith = (value: string, before: Occurrence | undefined) => {
    const { placeholder = '', isRepeatable } = byFlag.get(before?.flag ?? '') ?? {}
    if (before !== undefined && placeholder.includes(',')) return `mean ${before.flag} ${before.value},${value}`
    if (before !== undefined && isRepeatable) return `mean ${before.flag} ${value}`
    const fits = (key: string) => options[key] !== undefined && !isGiven(key)
    const key = DATA_FILE.test(value) && fits('data') ? 'data' : ['model', 'base', 'out'].find(fits)
    return key === undefined ? 'forget an option in front of it' : `mean ${flagOf(key)} ${value}`
  }
  /** True for an argument after a list (`--target-modules q v`) that is no path and no id with an owner. */
  const isOfList = (value: string, before: Occurrence | undefined) => {
    const { placeholder = '' } = byFlag.get(before?.flag ?? '') ?? {}
    return placeholder.includes(',') && !/[/\\]/.test(value) && !existsSync(value)
  }
  const add = (flag: string, value: string, isRepeatable = false) => {
    const earlier = occurrences.find((occurrence) => occurrence.flag === flag)
    if (!isRepeatable && earlier !== undefined) {
      throw new UsageError(`${flag} is given twice: '${earlier.value}' and '${value}'`)
    }
    occurrences.push({ flag, value })
  }
  for (const token of tokens) {
    if (token.kind === 'positional') {
      const key = isOfList(token.value, last) ? undefined : subject.find((name) => !isGiven(name))
      if (key === undefined) {
        const many = subject.length > 0 ? `: 'lowrank ${name}' takes ${subject.map(nameOf).join(' and ')}` : ''
        throw new UsageError(`unexpected argument '${token.value}'${many}; did you ${meantWith(token.value, last)}?`)
      }
      add(flagOf(key), token.value, options[key].isRepeatable)
    }
    last = undefined
    if (token.kind !== 'option') continue
    const { rawName: flag, value, inlineValue } = token
    const option = byFlag.get(flag)
    if (option === undefined) throw new UsageError(unknownOption(flag, [...byFlag.keys()]))
    checkValue(flag, value, inlineValue ?? false, option)
    add(flag === alias?.flag ? flagOf(alias.key) : flag, value ?? '', option.isRepeatable)
    last = occurrences.at(-1)
  }
  return occurrences
}

/** Lets commands accept `--base` for `--model`, and `--model` for `--base`, if they have only one of them. */
export function aliasOf(options: Options): { flag: string; key: string } | undefined {
  const [key, ...others] = ['model', 'base'].filter((name) => Object.hasOwn(options, name))
  if (key === undefined || others.length > 0) return undefined
  return { flag: key === 'model' ? '--base' : '--model', key }
}

export function nameOf(key: string): string {
  return flagOf(key).slice(2).toUpperCase()
}

/** Checks a value. Only a value in the form --flag=value may begin with a dash. */
function checkValue(
  flag: string,
  value: string | undefined,
  isInline: boolean,
  { placeholder }: Option<unknown>,
): void {
  if (placeholder === undefined) {
    if (value !== undefined) throw new UsageError(`${flag} takes no value; got '${value}'`)
    return
  }
  if (value === undefined || (!isInline && value.startsWith('--'))) {
    throw new UsageError(`${flag} needs a value: ${flag} ${placeholder}`)
  }
  if (value === '' && /DIR|FILE/.test(placeholder)) throw new UsageError(`${flag} is empty`)
}

function unknownOption(flag: string, known: string[]): string {
  const names = known.map((name) => name.slice(2))
  const written = flag.replace(/^-+/, '')
  const initials = (name: string) => name.replace(/(\w)\w*-?/g, '$1')
  const keys = names.map(keyOf)
  const advice = adviceOn(written, ['--', ...keys, ...keys.map((key) => `--${key}`)])
  if (advice !== undefined) return `there is no option ${flag}. ${advice}`
  const meant = meantBy(written, keys)
  const near = names.find((name) => initials(name) === written) ?? (meant && names[keys.indexOf(meant)])
  return `there is no option ${flag}${near === undefined ? '' : `; did you mean --${near}?`}`
}

/** A path, a model on the Hub, or a URL. */
export const MODEL = 'DIR|FILE|ID'
/** The same as MODEL, without single files. */
export const ADAPTER = 'DIR|ID'

export const RUNS =
  'model: an id on the Hub, a folder (config.json, tokenizer.json, onnx/model.onnx), or its .onnx file'
