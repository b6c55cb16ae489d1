// The project's error classes. Every message has the same pattern: where, what is wrong, expected, got, what to do.

// The files of src/core/, in reading order:
//   base/errors.ts                 the errors that everything throws
//   base/options.ts                checks of options, by tables that are made from their types
//   base/bytes.ts, base/tensor.ts  where bytes come from and go to; arrays with a shape
//   base/                          the rest of what every district needs: half floats, random streams, turns
//   kernels/                       fast products and merges; reference.ts says what they must compute
//   linalg/                        products of matrices, QR, SVD and eigenvalues

/** The kinds of errors. Each class has its own code. */
export type ErrorCode =
  | 'FORMAT'
  | 'SHAPE'
  | 'CONFIG'
  | 'UNSUPPORTED'
  | 'MISMATCH'
  | 'STATE'
  | 'FILE'
  | 'DATA'
  | 'RUNTIME'
  | 'NUMERIC'
  | 'CONTEXT'

/** The parts of an error's message. */
export interface ErrorDetails {
  /** The file, tensor, layer or option that the error is about. */
  where?: string
  /** The fault. */
  what: string
  /** The value or form that lowrank expected. */
  expected?: string
  /** The value or form that lowrank found instead. */
  got?: string
  /** One sentence that says what you can do about it. */
  hint?: string
  /** The error that caused this error. */
  cause?: unknown
}

/**
 * The base class of all errors that lowrank throws on purpose. To find out which kind an error is, check `code` and not
 * the text of the message. `where`, `what`, `expected`, `got` and `hint` are the parts of the message.
 */
export abstract class LowrankError extends Error {
  /** The kind of error. */
  abstract readonly code: ErrorCode
  /** The class's name, which survives bundlers that shorten names. */
  abstract override readonly name: string
  /** The file, tensor, layer or option that the error is about. */
  declare readonly where: string | undefined
  /** The fault, in one clause. */
  readonly what: string
  /** The value or form that lowrank expected. */
  declare readonly expected: string | undefined
  /** The value or form that lowrank found instead. */
  declare readonly got: string | undefined
  /** Says what you can do about it. */
  declare readonly hint: string | undefined
  /** The trained adapter, a `LoraAdapter`, if the error ended a training after its first step. */
  declare readonly adapter?: unknown

  constructor(details: ErrorDetails) {
    super(formatMessage(details), details.cause === undefined ? undefined : { cause: details.cause })
    if (details.where !== undefined) this.where = details.where
    this.what = details.what
    if (details.expected !== undefined) this.expected = details.expected
    if (details.got !== undefined) this.got = details.got
    if (details.hint !== undefined) this.hint = details.hint
  }
}

/** The most characters of each part in a message. Names and values in a hostile file can have megabytes. */
const MAX_PART_LENGTH = 2000

function formatMessage({ where, what, expected, got, hint }: ErrorDetails): string {
  let message = where === undefined ? '' : `${shortened(where)}: `
  message += shortened(what)
  if (expected !== undefined) message += `; expected ${shortened(expected)}`
  if (got !== undefined) message += `${expected === undefined ? ';' : ','} got ${shortened(got)}`
  if (hint !== undefined) message += `. ${shortened(hint)}`
  return message
}

/** Shortens a part of a message. In plain JavaScript, a part may be any value. */
function shortened(value: unknown): string {
  const part = String(value)
  return part.length > MAX_PART_LENGTH ? `${part.slice(0, MAX_PART_LENGTH)}…` : part
}

/** Bytes that do not follow their format: safetensors, ONNX, JSON. */
export class FormatError extends LowrankError {
  override readonly name = 'FormatError'
  readonly code = 'FORMAT'
}

/** A matrix, tensor or input with the wrong shape. */
export class ShapeError extends LowrankError {
  override readonly name = 'ShapeError'
  readonly code = 'SHAPE'
}

/** An option or a configuration value that is out of range or contradicts another. */
export class ConfigError extends LowrankError {
  override readonly name = 'ConfigError'
  readonly code = 'CONFIG'
}

/** Valid input that asks for something that is not implemented. */
export class UnsupportedError extends LowrankError {
  override readonly name = 'UnsupportedError'
  readonly code = 'UNSUPPORTED'
}

/** Two valid things that do not fit each other: an adapter and a model, targets and modules. */
export class MismatchError extends LowrankError {
  override readonly name = 'MismatchError'
  readonly code = 'MISMATCH'
}

/** A call in a state that does not allow it: a second merge, backward before forward, use after dispose. */
export class StateError extends LowrankError {
  override readonly name = 'StateError'
  readonly code = 'STATE'
}

/** A file or folder that is missing, cannot be read or written, or would be overwritten. */
export class FileError extends LowrankError {
  override readonly name = 'FileError'
  readonly code = 'FILE'
}

/** Training or evaluation records that cannot be used. */
export class DataError extends LowrankError {
  override readonly name = 'DataError'
  readonly code = 'DATA'
}

/** ONNX Runtime is absent, or failed to load or run a model. */
export class RuntimeError extends LowrankError {
  override readonly name = 'RuntimeError'
  readonly code = 'RUNTIME'
}

/** A result that is not finite: a loss, a gradient, a merged weight. */
export class NumericError extends LowrankError {
  override readonly name = 'NumericError'
  readonly code = 'NUMERIC'
}

/** A prompt that leaves no room for an answer. Its message begins as OpenAI's, because clients look for these words. */
export class ContextError extends LowrankError {
  override readonly name = 'ContextError'
  readonly code = 'CONTEXT'
}

/** @param most the most tokens of a prompt. Default: all but one */
export function contextError(contextLength: number, got: string, most = contextLength - 1): ContextError {
  const what = `This model's maximum context length is ${contextLength} tokens`
  return new ContextError({ what, expected: `a prompt of at most ${most}`, got })
}

/** Returns the message of something that was thrown, even if it is not an Error. */
export function messageOf(cause: unknown): string {
  return cause instanceof Error ? cause.message : String(cause)
}

/** A count with its noun, for messages: 1 record, 2,000 records. */
export function counted(count: number, noun: string): string {
  return `${Math.round(count).toLocaleString('en-US')} ${noun}${count === 1 ? '' : 's'}`
}

const OPEN_FILES = /\b(EMFILE|ENFILE)\b|too many open files/i

/** Returns what to do if an error of another program says that a process has too many open files. */
export function openFilesHint(message: string): string | undefined {
  return OPEN_FILES.test(message) ? 'Raise the limit of open files (ulimit -n 1024)' : undefined
}

export function listed(names: readonly string[], kind = 'files'): string {
  return names.slice(0, 5).join(', ') + (names.length > 5 ? `, … (${names.length} ${kind})` : '')
}

/** Catches errors that `work` throws on purpose, so that a reader can go on and report all problems together. */
export function attempt<T>(work: () => T): { value: T | undefined; problems: readonly LowrankError[] } {
  try {
    return { value: work(), problems: [] }
  } catch (error) {
    if (!(error instanceof LowrankError)) throw error
    return { value: undefined, problems: [error] }
  }
}

export interface SerializedError {
  code: ErrorCode | undefined
  name: string
  message: string
  stack: string | undefined
  details: ErrorDetails | undefined
}

/** Turns an error into a plain object for structured cloning, without the cause, which may be anything. */
export function serializeError(error: unknown): SerializedError {
  if (error instanceof LowrankError) {
    const { code, name, message, stack, where, what, expected, got, hint } = error
    return { code, name, message, stack, details: { where, what, expected, got, hint } }
  }
  const plain = error instanceof Error ? error : new Error(String(error))
  return { code: undefined, name: plain.name, message: plain.message, stack: plain.stack, details: undefined }
}

const CLASSES = {
  FORMAT: FormatError,
  SHAPE: ShapeError,
  CONFIG: ConfigError,
  UNSUPPORTED: UnsupportedError,
  MISMATCH: MismatchError,
  STATE: StateError,
  FILE: FileError,
  DATA: DataError,
  RUNTIME: RuntimeError,
  NUMERIC: NumericError,
  CONTEXT: ContextError,
} satisfies Record<ErrorCode, new (details: ErrorDetails) => LowrankError>

export function deserializeError(error: SerializedError): Error {
  let result: Error
  if (error.code !== undefined && error.details !== undefined) {
    result = new CLASSES[error.code](error.details)
  } else {
    result = new Error(error.message)
    result.name = error.name
  }
  if (error.stack !== undefined) result.stack = error.stack
  return result
}

/** Longer names come from hostile files, and comparing names takes quadratic time. */
const MAX_COMPARED = 500

/** The most steps of comparing: a fifth of a second, enough for the names of a few thousand tensors. */
const MAX_COMPARING = 1 << 23

/** If edits divided by the longer name's length are more than this, the two are different words. */
const MAX_DISTANCE = 0.6

/** The weight of an edit if a name contains the other name, as in `q_proj` and `model.q_proj`. */
const CONTAINED_WEIGHT = 0.01

/**
 * Returns the candidates closest to `name` by edit distance for "did you mean" hints, best first. Edits count little if
 * a candidate contains the name or is contained in it. Candidates that differ too much are left out. If there are very
 * many candidates, only the first are considered. It never throws, because it is used while making errors.
 */
export function nearMisses(name: string, candidates: Iterable<string>, limit = 3): string[] {
  const isUsable = typeof name === 'string' && typeof candidates?.[Symbol.iterator] === 'function'
  if (!isUsable || name.length > MAX_COMPARED) return []
  let steps = 0
  const comparable = [...new Set(candidates)].filter((candidate) => {
    if (typeof candidate !== 'string' || candidate.length > MAX_COMPARED) return false
    steps += name.length * candidate.length
    return steps <= MAX_COMPARING
  })
  const scored = comparable.map((candidate) => {
    const contains = candidate.includes(name) || name.includes(candidate)
    const distance = editDistance(name, candidate)
    const score = contains ? distance * CONTAINED_WEIGHT : distance / Math.max(name.length, candidate.length)
    return { candidate, score }
  })
  return scored
    .filter(({ score }) => score <= MAX_DISTANCE)
    .sort((a, b) => a.score - b.score)
    .slice(0, Number.isInteger(limit) ? limit : 3)
    .map(({ candidate }) => candidate)
}

/** Returns a question whether the closest candidates are meant, or undefined if none is close. */
export function didYouMean(name: string, candidates: Iterable<string>, limit = 1): string | undefined {
  const near = nearMisses(name, candidates, limit)
  return near.length > 0 ? `Did you mean ${near.join(' or ')}?` : undefined
}

/** Counts letters to change, add, leave out, or swap with the next letter (optimal string alignment distance). */
export function editDistance(a: string, b: string): number {
  const rows = [[], [], Array.from({ length: b.length + 1 }, (_, j) => j)] as number[][]
  for (let i = 1; i <= a.length; i++) {
    const [before, above] = [rows[1], rows[2]]
    const row = [i]
    for (let j = 1; j <= b.length; j++) {
      const isSame = a[i - 1] === b[j - 1]
      row[j] = Math.min(above[j] + 1, row[j - 1] + 1, above[j - 1] + (isSame ? 0 : 1))
      const isExchanged = i > 1 && j > 1 && a[i - 1] === b[j - 2] && a[i - 2] === b[j - 1]
      if (isExchanged) row[j] = Math.min(row[j], before[j - 2] + 1)
    }
    rows.shift()
    rows.push(row)
  }
  return rows[2][b.length]
}
