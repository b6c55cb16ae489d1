// Jinja by @huggingface/jinja, with what it lacks beside Jinja's own: strip, lstrip and rstrip of given characters, line ends of
// any system, and marks in the place of transformers' {% generation %} tags.

import type { Template } from '@huggingface/jinja'
import { childrenOf, type Node, variableName } from './jinja-nodes.js'
import { markTurns } from './turnwise.js'

/** Put into a text where a generated part begins and ends: characters that Unicode reserves for a program's own use. */
export const [OPEN_MARK, CLOSE_MARK] = ['\ufdd0', '\ufdd1']

const GENERATION_TAG = /\{%(-?)\s*(end)?generation\s*(-?)%\}/g
const COMMENT = /\{#[\s\S]*?#\}/g

/** Whether a template marks what the model writes. */
export function marksGeneration(template: string): boolean {
  return template.replace(COMMENT, '').search(GENERATION_TAG) >= 0
}

/** A template that renders variables. */
export type Renderer = (variables: Readonly<Record<string, unknown>>) => string

/** A template, ready to render. */
export interface CompiledTemplate {
  readonly render: Renderer
  /** The same with {@link TURN_MARK} behind each message, where the template allows it. */
  readonly renderTurns: Renderer | undefined
}

/** @throws whatever the library throws for what is no Jinja, and later for what cannot be rendered */
export function compileJinja(library: { readonly Template: typeof Template }, template: string): CompiledTemplate {
  const text = withMarks(template.replace(/\r\n?/g, '\n'))
  let hasStrips = false
  const compile = () => {
    const compiled = new library.Template(text)
    hasStrips = replaceStrips(compiled.parsed as unknown as Node)
    return compiled
  }
  const rendererOf =
    (compiled: Template): Renderer =>
    (variables) =>
      compiled.render(hasStrips ? { ...STRIPS, ...variables } : { ...variables })
  const turns = compile()
  const isTurnwise = markTurns(turns.parsed as unknown as Node)
  return { render: rendererOf(compile()), renderTurns: isTurnwise ? rendererOf(turns) : undefined }
}

/** The template with a mark in the place of each tag. Blocks around the marks keep the tags' handling of the space beside them. */
function withMarks(template: string): string {
  return template.replace(GENERATION_TAG, (_, left: string, end: string | undefined, right: string) => {
    return `{%${left} if true %}${end === undefined ? OPEN_MARK : CLOSE_MARK}{% endif ${right}%}`
  })
}

const PREFIX = '__lowrank_'

/** Python's methods as functions: the library ignores their argument. */
const STRIPS = {
  [`${PREFIX}strip`]: (text: string, characters: string) => stripStart(stripEnd(text, characters), characters),
  [`${PREFIX}lstrip`]: stripStart,
  [`${PREFIX}rstrip`]: stripEnd,
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

/** Turns each `x.strip(y)` into a call of ours, in place. Returns whether there is one. */
function replaceStrips(node: Node): boolean {
  let isInside = false
  for (const child of childrenOf(node)) isInside = replaceStrips(child) || isInside
  if (node.type !== 'CallExpression' || !Array.isArray(node.args) || node.args.length !== 1) return isInside
  const { type, object, property, computed } = node.callee as Node
  const name = `${PREFIX}${variableName(property)}`
  if (type !== 'MemberExpression' || computed === true || !Object.hasOwn(STRIPS, name)) return isInside
  node.callee = { type: 'Identifier', value: name }
  node.args = [object, ...node.args]
  return true
}
