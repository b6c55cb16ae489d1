// Reads text files for commands. A file with the options of a run is YAML or JSON; its names are the option names of
// train() in code.

import { ConfigError, FormatError, type TrainOptions } from '../../../api/index.js'
import { readTextFile } from '../../../api/node/command-line.js'
import { isObject, objectOf } from '../../../core/base/options.js'

export function readRunFile(file: string): Promise<Partial<TrainOptions>> {
  return readOptions(file, 'not the options of a run', 'names with values, such as model, data, out and maxSteps')
}

/** @param wrong what the file is if it is not a map of names and values, and `expected` what it should be */
export async function readOptions(file: string, wrong: string, expected: string): Promise<Record<string, unknown>> {
  const text = await readTextFile(file)
  const { parse, YAMLParseError } = await import('yaml')
  let value: unknown
  try {
    value = parse(text, { logLevel: 'error' })
  } catch (cause) {
    const what = cause instanceof Error ? cause.message.split('\n')[0] : String(cause)
    const kind = cause instanceof YAMLParseError ? 'not valid YAML or JSON' : 'cannot be read'
    throw new FormatError({ where: file, what: `${kind} (${what.replace(/:$/, '')})`, cause })
  }
  if (isObject(value)) return value
  throw new FormatError({
    where: file,
    what: wrong,
    expected,
    got: Array.isArray(value) ? 'a list' : value === null ? 'nothing' : typeof value,
  })
}

export function inRunFile(error: unknown, file: string, given: ReadonlySet<string>, options: object): unknown {
  if (!(error instanceof ConfigError) || error.where === undefined) return error
  const { where, what, expected, got, hint } = error
  const [name] = where.split(/[.[]/)
  const { config } = options as { config?: unknown }
  const isThere = Object.hasOwn(options, name) || Object.hasOwn(objectOf(config), name)
  if (!isThere || given.has(name)) return error
  return new ConfigError({ where: `${file}: ${where}`, what, expected, got, hint, cause: error })
}
