// Chat templates that are ready to render. They are Jinja, run by @huggingface/jinja.

import { DataError, FormatError, messageOf } from '../base/errors.js'
import type { Span } from './added-tokens.js'
import { CLOSE_MARK, type CompiledTemplate, compileJinja, OPEN_MARK } from './jinja.js'
import { type ChatTemplate, DEFAULT_TEMPLATE, type RenderedChat, type TemplateSource } from './template.js'

const TOOL_TEMPLATE = 'tool_use'

export async function compileChatTemplate(source: TemplateSource): Promise<ChatTemplate> {
  const library = await import('@huggingface/jinja')
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
      const own = { messages, tools: tools ?? null, documents: null, add_generation_prompt: addGenerationPrompt }
      let text: string
      try {
        text = template.render({ ...specialTokens, ...own, ...args })
      } catch (cause) {
        throw new DataError({
          where: record,
          what: `the model's chat template does not take this chat (${messageOf(cause)})`,
          hint: 'Change the record, or give another template with `chatTemplate`',
          cause,
        })
      }
      return template.marksGeneration ? readMarks(text, record) : { text, generated: [] }
    },
  }
}

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
