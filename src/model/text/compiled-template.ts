// Compiles chat templates (Jinja) with @huggingface/jinja, and adds: a limit on work, strip, lstrip and rstrip with an
// argument, line ends of every system, and marks for the {% generation %} tags of transformers.

import { attempt, DataError, FormatError, messageOf } from '../../core/base/errors.js'
import type { Span } from './added-tokens.js'
import { type MessageOfParts, withArgumentObjects } from './chat.js'
import { DEFAULT_TEMPLATE, type PlainTemplate, type RenderedChat, type TemplateSource } from './template.js'

const TOOL_TEMPLATE = 'tool_use'

export async function compileChatTemplate(source: TemplateSource): Promise<PlainTemplate> {
  const library = (await import('@huggingface/jinja')) as unknown as Jinja
  const { name: where, specialTokens } = source
  const compiled = new Map<string, CompiledTemplate>()
  for (const [name, text] of source.texts) {
    try {
      compiled.set(name, compileJinja(library, text))
    } catch (cause) {
      throw new FormatError({
        where,
        what: `the chat template cannot be read (${messageOf(cause)})`,
        hint: 'Give another one with `chatTemplate`',
        cause,
      })
    }
  }
  const only = compiled.size === 1 ? [...compiled.keys()][0] : undefined
  const fallback = compiled.has(DEFAULT_TEMPLATE) ? DEFAULT_TEMPLATE : only
  if (fallback === undefined) {
    throw new FormatError({
      where,
      what: 'several chat templates and none named default',
      got: [...compiled.keys()].join(', '),
      hint: 'Give one with `chatTemplate`',
    })
  }
  return {
    name: where,
    text: source.texts.get(fallback) as string,
    marksGeneration: compiled.get(fallback)!.marksGeneration,
    render(messages, { tools, addGenerationPrompt = false, args }, record) {
      const template = compiled.get(tools !== undefined && compiled.has(TOOL_TEMPLATE) ? TOOL_TEMPLATE : fallback)!
      const chatVariables = { tools: tools ?? null, documents: null, add_generation_prompt: addGenerationPrompt }
      const write = (messages: readonly object[]) => {
        try {
          return template.render({ ...specialTokens, messages, ...chatVariables, ...args })
        } catch (cause) {
          throw new DataError({
            where: record,
            what: `the model's chat template does not take this chat (${messageOf(cause)})`,
            hint: 'Change the record, or give another template with `chatTemplate`',
            cause,
          })
        }
      }
      const withObjects = messages.map(withArgumentObjects)
      // Some templates append the arguments of a call to a text (DeepSeek's), or the content of a message with calls,
      // or they test whether the content is missing. So several forms of the messages are tried.
      const forms = [withObjects, messages].flatMap((form) => [form, withContent(form, null), withContent(form, '')])
      const different = forms.filter((form, i) => forms.findIndex((known) => isSame(known, form)) === i)
      let refusal: unknown
      for (const form of different) {
        const { value: text, problems } = attempt(() => write(form))
        if (text !== undefined) return template.marksGeneration ? readMarks(text, record) : { text, generated: [] }
        refusal ??= problems[0]
      }
      throw refusal
    },
  }
}

/** Gives messages that have calls alone a content. */
function withContent(messages: readonly MessageOfParts[], content: string | null): readonly object[] {
  return messages.map((message) => (message.content === undefined ? { ...message, content } : message))
}

const isSame = (a: readonly object[], b: readonly object[]) => a.every((message, i) => message === b[i])

function readMarks(marked: string, where: string): RenderedChat {
  const generated: Span[] = []
  const parts = marked.split(/([\ufdd0\ufdd1])/)
  let text = ''
  let start: number | undefined
  for (const part of parts) {
    if (part === OPEN_MARK && start === undefined) start = text.length
    else if (part === CLOSE_MARK && start !== undefined) {
      if (text.length > start) generated.push({ start, end: text.length })
      start = undefined
    } else if (part === OPEN_MARK || part === CLOSE_MARK) {
      throw new DataError({ where, what: 'a character that Unicode reserves (U+FDD0 or U+FDD1)', hint: 'Remove it' })
    } else text += part
  }
  return { text, generated }
}

/** Mark the begin and end of a generated part. Unicode reserves these two characters for use inside programs. */
export const [OPEN_MARK, CLOSE_MARK] = ['\ufdd0', '\ufdd1']

const GENERATION_TAG = /\{%(-?)\s*(end)?generation\s*(-?)%\}/g

/** The longest known templates have about 20 kB. */
const MAX_TEMPLATE_LENGTH = 1_000_000
/** The library's search for tags takes quadratic time in the length of white space. */
const LONG_SPACE = /\s{301}/

/** The most expressions that one rendering may evaluate: a few seconds. A chat of 1500 turns needs a tenth of it. */
const MAX_WORK = 1 << 21
/** The cost of a round of a loop, for which the library makes two scopes and nine variables. */
const STEPS_PER_ROUND = 8
/**
 * The most characters of a text, or the largest size of a list or object: its elements and everything nested in them,
 * texts by their characters.
 */
const MAX_SIZE = 1 << 24
/** How many characters an operator copies, or a filter makes, in the time of one expression. */
const [COPIED_PER_STEP, MADE_PER_STEP] = [64, 8]
/** How many elements an operator looks at, or a slice copies, in the time of one expression. */
const [SEEN_PER_STEP, SLICED_PER_STEP] = [1024, 16]

const MAKERS = new Set<string | undefined>(['FilterExpression', 'CallExpression'])

/** Kinds of expressions whose result can be larger than their operands. */
const HOLDERS = new Set([...MAKERS, 'ArrayLiteral', 'TupleLiteral', 'ObjectLiteral', 'BinaryExpression'])

interface Node {
  type: string
  [field: string]: unknown
}

interface CompiledTemplate {
  render(variables: Readonly<Record<string, unknown>>): string
  readonly marksGeneration: boolean
}

interface Jinja {
  readonly Template: new (
    text: string,
  ) => { readonly parsed: object; render(variables: Record<string, unknown>): string }
  readonly Environment: new () => { set(name: string, value: unknown): unknown }
  readonly Interpreter: new (
    environment: object,
  ) => { run(program: Node): RuntimeValue; evaluate(node: Node | undefined, environment: object): RuntimeValue }
}

interface RuntimeValue {
  readonly type: string
  readonly value: unknown
}

function compileJinja(library: Jinja, template: string): CompiledTemplate {
  if (template.length > MAX_TEMPLATE_LENGTH) throw new SyntaxError(`more than ${MAX_TEMPLATE_LENGTH} characters`)
  if (LONG_SPACE.test(template)) throw new SyntaxError('more than 300 spaces in a row')
  const text = withMarks(template.replace(/\r\n?/g, '\n'))
  const program = new library.Template(text).parsed as Node
  const run = runnerOf(library)
  return {
    render: (variables) => run(program, variables),
    marksGeneration: hasMarks(program),
  }
}

/** Runs programs with limits: a stranger's template could loop for hours or fill memory. */
function runnerOf({ Template, Environment, Interpreter }: Jinja): (program: Node, variables: object) => string {
  const now = new Template('{{ strftime_now(format) }}')
  // The library's globals, except that `range` has a limit.
  const globals: Readonly<Record<string, unknown>> = {
    false: false,
    true: true,
    none: null,
    False: false,
    True: true,
    None: null,
    raise_exception: (message: string) => {
      throw new Error(message)
    },
    range,
    strftime_now: (format: string) => now.render({ format }),
  }

  class LimitedInterpreter extends Interpreter {
    #work = 0
    /** Nodes whose last value was an object or a list. */
    readonly #objects = new WeakSet<object>()
    readonly #looped = new Set<unknown>()
    /** The sizes of lists and objects with everything nested in them. They never change after they are made. */
    readonly #sizes = new WeakMap<object, number>()

    override evaluate(node: Node | undefined, environment: object): RuntimeValue {
      this.#spend(1)
      if (node?.type === 'For') this.#looped.add((node.iterable as Node).lhs ?? node.iterable)
      const result = this.#stripped(node, environment) ?? super.evaluate(node, environment)
      const { value } = result
      if (typeof value === 'string') {
        this.#objects.delete(node!)
        if (this.#joinsObject(node!)) throw new TypeError('a text and an object cannot be joined')
        this.#spend(value.length / (MAKERS.has(node?.type) ? MADE_PER_STEP : COPIED_PER_STEP))
        if (value.length > MAX_SIZE) throw new RangeError(`a text of more than ${MAX_SIZE} characters`)
      } else if (typeof value === 'object' && value !== null) {
        this.#objects.add(node!)
        const length = Array.isArray(value) ? value.length : (value as Map<string, RuntimeValue>).size
        if (this.#looped.has(node)) this.#spend(length * STEPS_PER_ROUND)
        const isSlice = (node?.property as Node | undefined)?.type === 'SliceExpression'
        this.#spend(length / (MAKERS.has(node?.type) ? 1 : isSlice ? SLICED_PER_STEP : SEEN_PER_STEP))
        if (HOLDERS.has(node?.type) && this.#sizeOf(result, 0) > MAX_SIZE)
          throw new RangeError(`a list of more than ${MAX_SIZE} elements`)
      }
      return result
    }

    /** Says whether an object would be joined to a text. Jinja throws, but the library would write [object Map]. */
    #joinsObject({ type, operator, left, right }: Node): boolean {
      const isJoined = type === 'BinaryExpression' && ['+', '~'].includes((operator as { value: string }).value)
      return isJoined && [left, right].some((side) => this.#objects.has(side as Node))
    }

    /** Runs Python's strip, lstrip and rstrip. The library ignores their argument. */
    #stripped(node: Node | undefined, environment: object): RuntimeValue | undefined {
      const call = stripCall(node)
      if (call === undefined) return undefined
      const text = this.evaluate(call.text, environment)
      const characters = this.evaluate(call.characters, environment)
      const StringValue = text.constructor as new (value: string) => RuntimeValue
      return new StringValue(STRIPS[call.name](text.value as string, characters.value as string))
    }

    #spend(work: number): void {
      this.#work += work
      if (this.#work > MAX_WORK) throw new RangeError('it takes too long')
    }

    /** Measures a value as it would be written out: a list can contain the same list many times. */
    #sizeOf({ type, value }: RuntimeValue, depth: number): number {
      if (typeof value === 'string') return 1 + value.length
      if (typeof value !== 'object' || value === null) return 1
      const known = this.#sizes.get(value)
      if (known !== undefined) return known
      if (depth > 100) throw new RangeError('lists nested too deep')
      const items: Iterable<RuntimeValue> = Array.isArray(value) ? value : (value as Map<string, RuntimeValue>).values()
      let size = 1
      for (const item of items) {
        this.#spend(1)
        size += this.#sizeOf(item, depth + 1)
      }
      // Only namespaces can change later, so other sizes can be kept.
      if (type !== 'NamespaceValue') this.#sizes.set(value, size)
      return size
    }
  }

  return (program, variables) => {
    const environment = new Environment()
    // The caller's variables replace globals of the same name, such as `range`.
    for (const [name, value] of Object.entries({ ...globals, ...variables })) environment.set(name, value)
    return new LimitedInterpreter(environment).run(program).value as string
  }
}

function range(from: number, to?: number, step = 1): number[] {
  const [start, stop] = to === undefined ? [0, from] : [from, to]
  if (step === 0) throw new Error('range() step must not be zero')
  const length = Math.max(0, Math.ceil((stop - start) / step))
  if (!(length <= MAX_SIZE / 64)) throw new RangeError(`a range of ${length} numbers`)
  return Array.from({ length }, (_, i) => start + i * step)
}

function hasMarks(program: Node): boolean {
  const withoutComments = (_: string, node: Node | null) => (node?.type === 'Comment' ? undefined : node)
  return JSON.stringify(program, withoutComments).includes(OPEN_MARK)
}

/** Puts marks in place of the generation tags. The blocks around the marks trim white space as the tags would. */
function withMarks(template: string): string {
  return template.replace(GENERATION_TAG, (_, left: string, end: string | undefined, right: string) => {
    return `{%${left} if true %}${end === undefined ? OPEN_MARK : CLOSE_MARK}{% endif ${right}%}`
  })
}

const STRIPS = {
  strip: (text: string, characters: string) => stripStart(stripEnd(text, characters), characters),
  lstrip: stripStart,
  rstrip: stripEnd,
}

/** Reads `x.strip(y)`. Calls without arguments are left to the library. */
function stripCall(node: Node | undefined): { name: keyof typeof STRIPS; text: Node; characters: Node } | undefined {
  const { type, callee, args } = (node ?? {}) as { type?: string; callee?: Node; args?: Node[] }
  if (type !== 'CallExpression' || callee?.type !== 'MemberExpression' || callee.computed === true) return undefined
  const name = (callee.property as Node).value as string
  const [characters] = args ?? []
  if (!Object.hasOwn(STRIPS, name) || characters === undefined) return undefined
  return { name: name as keyof typeof STRIPS, text: callee.object as Node, characters }
}

function stripStart(text: string, characters: string): string {
  let start = 0
  while (start < text.length && characters.includes(text[start])) start++
  return text.slice(start)
}

function stripEnd(text: string, characters: string): string {
  let end = text.length
  while (end > 0 && characters.includes(text[end - 1])) end--
  return text.slice(0, end)
}
