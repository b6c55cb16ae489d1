// Finds a model's chat template. The code that compiles templates is imported only when there is one.

import { type Directory, readJson, readJsonIfThere, readText } from '../../core/base/bytes.js'
import { ConfigError, FormatError } from '../../core/base/errors.js'
import { objectOf } from '../../core/base/options.js'
import type { ToolForm } from './calls/call.js'
import { type ChatTemplate, DEFAULT_TEMPLATE, type TemplateSource } from './template.js'

const OF_PROCESSOR = 'chat_template.json'

const SPECIAL_TOKENS = ['bos', 'eos', 'unk', 'sep', 'pad', 'cls', 'mask'].map((name) => `${name}_token`)

/**
 * Loads a model's chat template from chat_template.jinja, else chat_template.json, else tokenizer_config.json. Returns
 * undefined if there is none. `given` is a template that is used instead, or the name of one that the model has. It is
 * never a path, since it may come from a folder that somebody else wrote.
 *
 * @throws ConfigError if `given` is neither
 */
export async function loadChatTemplate(
  directory: Directory,
  given?: string,
  { toolForm, toolsInAdapter = false }: TemplateMarks = {},
): Promise<ChatTemplate | undefined> {
  const template = await load(directory, given)
  if (template === undefined || (toolForm === undefined && !toolsInAdapter)) return template
  const form = toolForm === undefined ? '' : `{#- toolForm: ${toolForm} -#}`
  const { withKnownTools } = await import('./calls/known-tools.js')
  return load(directory, form + (toolsInAdapter ? withKnownTools(template.text, []) : template.text))
}

/** What is written into a template beside its source. */
interface TemplateMarks {
  readonly toolForm?: ToolForm | undefined
  /** True if it leaves tools out. */
  readonly toolsInAdapter?: boolean | undefined
}

async function load(directory: Directory, given: string | undefined): Promise<ChatTemplate | undefined> {
  const fields = objectOf(await readJsonIfThere(directory, 'tokenizer_config.json'))
  const specialTokens = specialTokensOf(fields)
  const compile = async (source: TemplateSource) => {
    const { compileChatTemplate } = await import('./compiled-template.js')
    return (await import('./calls/tool-places.js')).withToolPlaces(await compileChatTemplate(source))
  }
  const single = (name: string, text: string) =>
    compile({ name, texts: new Map([[DEFAULT_TEMPLATE, text]]), specialTokens })
  if (given !== undefined && isTemplate(given)) return single('chatTemplate', given)
  if (given !== undefined) return single(given, await namedTemplate(directory, fields, given))
  if (await directory.has('chat_template.jinja')) {
    const jinja = await readText(directory, 'chat_template.jinja')
    return single(`${directory.name}/chat_template.jinja`, jinja)
  }
  const file = (await directory.has(OF_PROCESSOR)) ? OF_PROCESSOR : 'tokenizer_config.json'
  const holder = file === OF_PROCESSOR ? await readJson(directory, file) : fields
  const { chat_template: stored } = objectOf(holder)
  if (stored === undefined || stored === null) return undefined
  const name = `${directory.name}/${file}`
  return compile({ name, texts: templatesOf(stored, name), specialTokens })
}

/** The longest path of Linux: no name is longer. */
const MAX_NAME = 4096

/** A text without expressions and statements would give the same for all chats. */
export function isTemplate(text: string): boolean {
  return /\{[{%#]/.test(text) || text.length > MAX_NAME
}

const MORE_TEMPLATES = 'additional_chat_templates'

async function namedTemplate(directory: Directory, config: { chat_template?: unknown }, name: string): Promise<string> {
  const { chat_template: stored } = config
  const named = Array.isArray(stored) ? templatesOf(stored, directory.name) : new Map<string, string>()
  const files = await directory.list(MORE_TEMPLATES).catch((): string[] => [])
  if (files.includes(`${name}.jinja`)) return readText(directory, `${MORE_TEMPLATES}/${name}.jinja`)
  const text = named.get(name)
  if (text !== undefined) return text
  const known = [...named.keys(), ...files.map((file) => file.replace(/\.jinja$/, ''))]
  throw new ConfigError({
    where: 'chatTemplate',
    what: 'neither a template, which has {{ or {%, nor the name of one that the model has',
    expected: known.length === 0 ? "a template's text: this model names no templates" : known.join(', '),
    got: JSON.stringify(name.slice(0, 80)),
    hint: 'If it is a file, read it and give its text',
  })
}

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

/** Puts the variables that an adapter was trained with into its template, as defaults for later renderings. */
export function recordTemplate(text: string, args: Readonly<Record<string, unknown>> = {}): string {
  const named = Object.entries(args).filter(([name]) => /^[A-Za-z_]\w*$/.test(name))
  const lines = named.map(([name, value]) => {
    return `{%- if ${name} is not defined %}{%- set ${name} = ${literal(value)} %}{%- endif %}`
  })
  return lines.length === 0 ? text : `${lines.join('\n')}\n{{- '' }}${text}`
}

function literal(value: unknown): string {
  if (value === null || value === undefined) return 'none'
  if (Array.isArray(value)) return `[${value.map(literal).join(', ')}]`
  if (typeof value !== 'object') return JSON.stringify(value)
  const entries = Object.entries(value).map(([key, item]) => `${JSON.stringify(key)}: ${literal(item)}`)
  return `{${entries.join(', ')}}`
}
