// Writes texts that fit a JSON schema: at each step only tokens that can still lead to such a text are allowed. The
// library @mlc-ai/web-xgrammar, an optional peer, says which. It is loaded with the first schema.

import type { CompiledGrammar, GrammarCompiler, GrammarMatcher } from '@mlc-ai/web-xgrammar'
import { ConfigError, DataError, messageOf } from '../../core/base/errors.js'
import { isObject } from '../../core/base/options.js'
import type { Vocabulary } from '../../model/text/vocabulary.js'
import { canEnd, Endings } from './endings.js'
import { ANY_INTEGER, ANY_NUMBER, NUMBERS, type NumberPart, numberRule } from './numbers.js'
import { type Part, withParts } from './schema-forms.js'
import { TAG_START } from './schemas.js'

// The published declarations do not name these types, because the package is optional: what has them is internal.
type Library = typeof import('@mlc-ai/web-xgrammar')

const PACKAGE = '@mlc-ai/web-xgrammar'

const KEPT = 16

/** The longest time that a schema may take for a step. */
const STEP_MS = 2000

/**
 * @internal Loads the package, which expects a browser: it reads `location`, and puts its exports on the global object.
 */
export async function loadLibrary(): Promise<Library> {
  const scope = globalThis as { location?: unknown; xgrammar?: Library }
  const isNode = scope.location === undefined
  if (isNode) scope.location = { href: import.meta.url }
  try {
    const module = (await import('@mlc-ai/web-xgrammar')) as unknown as Partial<Library>
    const found = module.Grammar === undefined ? scope.xgrammar! : (module as Library)
    await found.Grammar.builtinJSONGrammar()
    return found
  } catch (cause) {
    throw new ConfigError({
      where: 'schema',
      what: `the package ${PACKAGE} cannot be loaded (${messageOf(cause)})`,
      hint: `Install it: npm install ${PACKAGE}`,
      cause,
    })
  } finally {
    if (isNode) delete scope.location
  }
}

export class Grammars {
  #opened: Promise<{ library: Library; compiler: GrammarCompiler; endings: Endings }> | undefined
  readonly #compiled = new Map<string, Promise<CompiledGrammar>>()

  constructor(private readonly vocabulary: Vocabulary) {}

  /** Opens the compiler once. If the library cannot be loaded, the next schema tries again. */
  #open() {
    this.#opened ??= (async () => {
      const library = await loadLibrary()
      const { tokens, spelling } = this.vocabulary
      const info = await library.TokenizerInfo.createTokenizerInfo([...tokens], spelling, false, tokens.length)
      const compiler = await library.GrammarCompiler.createGrammarCompiler(info, false)
      return { library, compiler, endings: new Endings(this.vocabulary) }
    })()
    this.#opened.catch(() => {
      this.#opened = undefined
    })
    return this.#opened
  }

  /** @internal */
  async compile(schema: string): Promise<CompiledGrammar> {
    const compiled = this.#compiled.get(schema) ?? this.#compileNow(schema)
    compiled.catch(() => this.#compiled.delete(schema))
    this.#compiled.delete(schema)
    this.#compiled.set(schema, compiled)
    for (const [oldest, old] of [...this.#compiled].slice(0, -KEPT)) {
      this.#compiled.delete(oldest)
      old.then((compiled) => compiled.dispose()).catch(() => {})
    }
    return compiled
  }

  async #compileNow(schema: string): Promise<CompiledGrammar> {
    const { library, compiler } = await this.#open()
    try {
      if (schema.startsWith(TAG_START)) {
        return await compiler.compileStructuralTag(JSON.stringify(await boundedTag(JSON.parse(schema), library)))
      }
      return await compiler.compileGrammar(await grammarOf(schema, library))
    } catch (cause) {
      throw new DataError({ where: 'schema', what: `${PACKAGE} cannot use it`, cause })
    }
  }

  async start(schema: string, ends: number[]): Promise<TextGrammar> {
    const compiled = await this.compile(schema)
    const { library, endings } = await this.#open()
    return new TextGrammar(await library.GrammarMatcher.createGrammarMatcher(compiled, ends), ends, endings)
  }
}

/** Writes the schemas in a structural tag as grammars. */
async function boundedTag(part: unknown, library: Library): Promise<unknown> {
  if (Array.isArray(part)) return Promise.all(part.map((item) => boundedTag(item, library)))
  if (!isObject(part)) return part
  if (part.type === 'json_schema') {
    return { type: 'grammar', grammar: await grammarOf(JSON.stringify(part.json_schema), library) }
  }
  const parts = await Promise.all(Object.values(part).map((value) => boundedTag(value, library)))
  return Object.fromEntries(Object.keys(part).map((key, i) => [key, parts[i]]))
}

/** The library's grammar of a schema, with our numbers, at most one space, and no control characters in strings. */
async function grammarOf(schema: string, library: Library): Promise<string> {
  const rules = new Map([
    ['basic_integer', ANY_INTEGER],
    ['basic_number', ANY_NUMBER],
  ])
  const marked = JSON.stringify(withMarks(JSON.parse(schema), rules))
  const grammar = await library.Grammar.fromJSONSchema(marked, true, 2, undefined, schema !== ANY_OBJECT, 1)
  const text = grammar.toString()
  grammar.dispose()
  const kept = text
    .split('\n')
    .filter((rule) => !rules.has(rule.split(' ')[0]))
    .join('\n')
    .replace(/\[ \\n\\t\]\*?/g, '" "?')
    .replaceAll('[^\\"\\\\\\r\\n]', '[^\\0-\\x1f\\"\\\\\\r\\n]')
    .replace(MARKS, '$1')
  return [kept, ...[...rules].map(([name, rule]) => `${name} ::= ${rule}`)].join('\n')
}

/** No schema has such a text. */
const MARK = crypto.randomUUID()
const MARKS = new RegExp(String.raw`"\\"${MARK}(bounded_\d+)\\""`, 'g')

/** Puts a constant in the place of each number with bounds: its name is that of a rule, which takes its place later. */
function withMarks(part: unknown, rules: Map<string, string>): unknown {
  if (Array.isArray(part)) return part.map((item) => withMarks(item, rules))
  if (!isObject(part)) return part
  const types = [part.type ?? []].flat()
  if (!NUMBERS.some((key) => part[key] !== undefined)) return withParts(part, (inner) => withMarks(inner, rules))
  const rest = Object.fromEntries(Object.entries(part).filter(([key]) => !(NUMBERS as readonly string[]).includes(key)))
  const name = `bounded_${rules.size}`
  rules.set(name, numberRule(part as NumberPart, !types.includes('number'), rules)!)
  const mark = { const: MARK + name }
  const others = types.filter((type) => type !== 'number' && type !== 'integer')
  const { $defs, definitions } = rest
  const beside = withMarks({ $defs, definitions }, rules) as Part
  if (others.length === 0) return { ...beside, ...mark }
  return { ...beside, anyOf: [withMarks({ ...rest, $defs: undefined, type: others }, rules), mark] }
}

export const ANY_OBJECT = '{"type":"object"}'

export class TextGrammar {
  /** A bit for each token: 1 if it is allowed next. {@link prepare} sets it. */
  #allowed: ArrayLike<number> = []
  /** Tokens with which the text ends from here on. Undefined: none are known. */
  #ending: readonly number[] | undefined
  /** True if the text would have gone on without its limit. */
  isCut = false

  /** @internal */
  constructor(
    private readonly matcher: GrammarMatcher,
    private readonly ends: readonly number[],
    private readonly endings: Endings,
  ) {}

  async prepare(): Promise<void> {
    const startedAt = performance.now()
    this.#allowed = await this.matcher.getNextTokenBitmask()
    const ms = performance.now() - startedAt
    if (ms <= STEP_MS) return
    throw new DataError({
      where: 'schema',
      what: 'a step of a text takes too long with it',
      expected: `at most ${STEP_MS / 1000} s`,
      got: `${(ms / 1000).toFixed(1)} s`,
    })
  }

  masked(logits: Float32Array): Float32Array {
    return logits.map((value, id) => (((this.#allowed[id >> 5] ?? 0) >>> (id & 31)) & 1 ? value : -Infinity))
  }

  /**
   * Takes a token. If the text could not end any more with the `left` tokens that it still has, it takes a token
   * that leads to the end.
   *
   * @returns the token that was taken
   */
  accept(id: number, left = Number.POSITIVE_INFINITY): number {
    const { matcher, ends, endings } = this
    if (left < Number.POSITIVE_INFINITY) this.#ending ??= endings.find(matcher, ends[0])
    const ending = this.#ending
    this.#ending = undefined
    matcher.acceptToken(id)
    if (ending === undefined || ending.length > left || ends.includes(id)) return id
    if (id === ending[0]) this.#ending = ending.slice(1)
    else if (this.#isEnding(ending)) this.#ending = ending
    if (this.#ending === undefined || this.#ending.length >= left) this.#ending = endings.find(matcher, ends[0])
    if (this.#ending === undefined || this.#ending.length < left) return id
    matcher.rollBack(1)
    this.isCut = true
    const [chosen = ends[0], ...rest] = ending
    matcher.acceptToken(chosen)
    this.#ending = rest
    return chosen
  }

  /** True if the text can still end as it could before its last token. */
  #isEnding(ending: readonly number[]): boolean {
    const { matcher, ends } = this
    const missing = ending.findIndex((id) => !matcher.acceptToken(id))
    const isEnd = missing < 0 && canEnd(matcher, ends[0])
    const count = missing < 0 ? ending.length : missing
    if (count > 0) matcher.rollBack(count)
    return isEnd
  }

  dispose(): void {
    this.matcher.dispose()
  }
}
