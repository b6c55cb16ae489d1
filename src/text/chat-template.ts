// A model's chat template: messages → the text that the model was trained to read, as transformers' apply_chat_template renders it.
// Templates are Jinja, run by @huggingface/jinja, which loads with the first of them.

import { type Directory, readAll, readJson } from '../base/bytes.js'
import { DataError, FormatError } from '../base/errors.js'
import { isObject } from '../base/options.js'
import type { Span } from './added-tokens.js'
import type { ChatMessage, MessageOfParts } from './chat.js'
import { CLOSE_MARK, type CompiledTemplate, compileJinja, marksGeneration, OPEN_MARK, type Renderer } from './jinja.js'
import { TURN_MARK } from './turnwise.js'

/** What a chat is rendered with, beside its messages. */
export interface RenderOptions {
  /** Whether the text goes on to where the model's answer begins. */
  readonly addGenerationPrompt?: boolean
  /** Descriptions of the functions that the model may call (JSON Schema). */
  readonly tools?: readonly unknown[] | undefined
  /** Further variables of the template, such as `enable_thinking`. */
  readonly args?: Readonly<Record<string, unknown>> | undefined
}

/** A chat as text. */
export interface RenderedChat {
  readonly text: string
  /** What the template itself marks as the model's, by `{% generation %}`; empty where it marks nothing. */
  readonly generated: readonly Span[]
}

/** A chat as text, with the end of each message in it. */
export interface RenderedTurns {
  readonly text: string
  readonly ends: readonly number[]
  /** What follows the messages where an answer is asked for. */
  readonly prompt: string
}

/** Renders the chats of one model. */
export interface ChatTemplate {
  /** For messages: the file it came from. */
  readonly name: string
  /** The template itself; of several the one for chats without tools. */
  readonly text: string
  /** Whether it marks what the model writes. */
  readonly marksGeneration: boolean
  /**
   * Renders messages and finds where each ends; with what the template adds where an answer is asked for.
   *
   * @returns undefined where one rendering does not tell
   * @throws as {@link render}
   */
  renderTurns(messages: readonly ChatMessage[], options: RenderOptions, where: string): RenderedTurns | undefined
  /**
   * Renders messages.
   *
   * @param where the record that they come from, for messages
   * @throws DataError when the template refuses them or fails
   */
  render(messages: readonly MessageOfParts[], options: RenderOptions, where: string): RenderedChat
}

/** Text of a template, by name where a model has several. */
export interface TemplateSource {
  /** For messages. */
  readonly name: string
  readonly texts: ReadonlyMap<string, string>
  /** bos_token, eos_token and the like. */
  readonly specialTokens: Readonly<Record<string, string>>
}

/** Where models of texts and pictures have theirs. */
const OF_PROCESSOR = 'chat_template.json'

/** The template of a list that is used, unless a chat has tools and there is one for them. */
const DEFAULT_TEMPLATE = 'default'
const TOOL_TEMPLATE = 'tool_use'

/** Special tokens that templates may name. */
const SPECIAL_TOKENS = ['bos', 'eos', 'unk', 'sep', 'pad', 'cls', 'mask'].map((name) => `${name}_token`)

/**
 * Reads the chat template of a model folder: chat_template.jinja, else what chat_template.json holds, else tokenizer_config.json.
 *
 * @param text another template, instead of the folder's
 * @returns undefined where the folder has none
 * @throws FormatError when there is one that cannot be used
 */
export async function loadChatTemplate(directory: Directory, text?: string): Promise<ChatTemplate | undefined> {
  const config = (await directory.has('tokenizer_config.json'))
    ? await readJson(directory, 'tokenizer_config.json')
    : undefined
  const fields = (typeof config === 'object' && config !== null ? config : {}) as Record<string, unknown>
  const specialTokens = specialTokensOf(fields)
  const single = (name: string, text: string) =>
    compileChatTemplate({ name, texts: new Map([[DEFAULT_TEMPLATE, text]]), specialTokens })
  if (text !== undefined) return single('chatTemplate', text)
  if (await directory.has('chat_template.jinja')) {
    const source = await directory.open('chat_template.jinja')
    try {
      return await single(source.name, new TextDecoder().decode(await readAll(source)))
    } finally {
      await source.close()
    }
  }
  const file = (await directory.has(OF_PROCESSOR)) ? OF_PROCESSOR : 'tokenizer_config.json'
  const holder = file === OF_PROCESSOR ? await readJson(directory, file) : fields
  const stored = isObject(holder) ? holder.chat_template : undefined
  if (stored === undefined || stored === null) return undefined
  const name = `${directory.name}/${file}`
  return compileChatTemplate({ name, texts: templatesOf(stored, name), specialTokens })
}

/** chat_template: a text, or a list of named ones. */
function templatesOf(stored: unknown, where: string): Map<string, string> {
  if (typeof stored === 'string') return new Map([[DEFAULT_TEMPLATE, stored]])
  const entries = (Array.isArray(stored) ? stored : []) as { name?: unknown; template?: unknown }[]
  const isList = entries.every((entry) => typeof entry?.name === 'string' && typeof entry.template === 'string')
  if (entries.length > 0 && isList)
    return new Map(entries.map(({ name, template }) => [name as string, template as string]))
  throw new FormatError({ where, what: 'chat_template is neither a text nor a list of named texts' })
}

function specialTokensOf(config: Readonly<Record<string, unknown>>): Record<string, string> {
  const tokens: Record<string, string> = {}
  for (const name of SPECIAL_TOKENS) {
    const token = config[name] as { content?: unknown } | string | null | undefined
    const content = typeof token === 'object' ? token?.content : token
    if (typeof content === 'string') tokens[name] = content
  }
  return tokens
}

/**
 * A template that is ready to render.
 *
 * @throws FormatError when it is no Jinja, or names none that can be the default
 */
export async function compileChatTemplate(source: TemplateSource): Promise<ChatTemplate> {
  const library = await import('@huggingface/jinja')
  const { name: where, specialTokens } = source
  const compiled = new Map<string, CompiledTemplate>()
  const marking = new Set<string>()
  for (const [name, text] of source.texts) {
    if (marksGeneration(text)) marking.add(name)
    try {
      compiled.set(name, compileJinja(library, text))
    } catch (cause) {
      throw new FormatError({
        where,
        what: `the chat template cannot be read (${messageOf(cause)})`,
        hint: 'Give another one with chatTemplate (--chat-template FILE)',
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
      hint: 'Give one with chatTemplate (--chat-template FILE)',
    })
  }
  const nameFor = (tools: RenderOptions['tools']) =>
    tools !== undefined && compiled.has(TOOL_TEMPLATE) ? TOOL_TEMPLATE : fallback
  const run = (
    render: Renderer,
    messages: readonly MessageOfParts[],
    options: RenderOptions,
    record: string,
  ): string => {
    try {
      return render({
        ...specialTokens,
        messages,
        tools: options.tools ?? null,
        documents: null,
        add_generation_prompt: options.addGenerationPrompt ?? false,
        ...options.args,
      })
    } catch (cause) {
      throw new DataError({
        where: record,
        what: `the model's chat template does not take this chat (${messageOf(cause)})`,
        hint: 'Change the record, or give another template with chatTemplate (--chat-template FILE)',
        cause,
      })
    }
  }
  return {
    name: where,
    text: source.texts.get(fallback) as string,
    marksGeneration: marking.has(fallback),
    render(messages, options, record) {
      const used = nameFor(options.tools)
      const text = run(compiled.get(used)!.render, messages, options, record)
      return marking.has(used) ? readMarks(text, record) : { text, generated: [] }
    },
    renderTurns(messages, options, record) {
      const render = compiled.get(nameFor(options.tools))!.renderTurns
      if (render === undefined) return undefined
      const parts = run(render, messages, { ...options, addGenerationPrompt: true }, record).split(TURN_MARK)
      // Messages may hold the mark themselves.
      if (parts.length !== messages.length + 1) return undefined
      const prompt = parts.pop() as string
      let end = 0
      const ends = parts.map((part) => {
        end += part.length
        return end
      })
      return { text: parts.join(''), ends, prompt }
    },
  }
}

/** The text without marks, and what was between them. */
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

function messageOf(cause: unknown): string {
  return cause instanceof Error ? cause.message : String(cause)
}
