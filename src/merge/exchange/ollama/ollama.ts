// Writes a folder for `ollama create`: the adapter as GGUF, and a Modelfile with the base, the template and the stop
// words. Ollama's templates are written in Go's template language, so we find out how a chat template writes a chat by
// rendering chats with known words.

import { type Place, readLeniently, writeFile } from '../../../core/base/bytes.js'
import { ConfigError, DataError, UnsupportedError } from '../../../core/base/errors.js'
import { isObject } from '../../../core/base/options.js'
import { loadChatTemplate } from '../../../model/text/chat-template.js'
import type { PlainTemplate } from '../../../model/text/template.js'
import type { ExchangeFormat } from '../exchange-format.js'
import { GGUF } from '../gguf/gguf-adapters.js'

const ADAPTER_FILE = 'adapter.gguf'

export const OLLAMA: ExchangeFormat = {
  async write(adapter, { directory }, settings) {
    const { base } = settings
    if (base === undefined) {
      const expected = 'the folder of the model, with its chat template, or its GGUF file, beside config.json'
      throw new ConfigError({
        where: 'base',
        what: 'missing: Ollama’s Modelfile names the model, which the adapter does not',
        expected,
      })
    }
    const template = await loadChatTemplate(base.directory, adapter.chatTemplate)
    const shape = template && turnShape(template, await beginning(base))
    const written = await GGUF.write(adapter, { directory, file: ADAPTER_FILE }, settings)
    await writeFile(directory, 'Modelfile', modelfile(base, shape))
    return { ...written, notes: [...(written.notes ?? []), ...notesOf(base, template, shape)] }
  },
}

/** The token that llama.cpp puts before a text. Empty if the tokenizer adds no such token, as SmolLM2's. */
async function beginning({ directory }: Place): Promise<string> {
  const { bos_token: token, add_bos_token: adds } = (await readLeniently(directory, 'tokenizer_config.json')) ?? {}
  const text = isObject(token) ? token.content : token
  const tokenizer = await readLeniently(directory, 'tokenizer.json')
  const added = JSON.stringify(tokenizer?.post_processor ?? null)
  const isAdded = adds ?? (tokenizer === undefined || added.includes(JSON.stringify(text)))
  return typeof text === 'string' && isAdded ? text : ''
}

function modelfile({ directory, file }: Place, shape: TurnShape | undefined): string {
  const { name, hubId } = directory
  const place = file === undefined ? name : `${name}/${file}`
  if (/\s/.test(place)) {
    throw new UnsupportedError({ where: place, what: 'a Modelfile takes no path with spaces', hint: 'Move the model' })
  }
  const from = hubId === undefined ? (/^([./\\]|\w:)/.test(place) ? place : `./${place}`) : `hf.co/${hubId}`
  const stop = shape?.assistant[1].trim()
  return [
    `FROM ${from}`,
    `ADAPTER ./${ADAPTER_FILE}`,
    ...(shape === undefined ? [] : [`TEMPLATE """${goTemplate(shape)}"""`]),
    ...(stop === undefined || stop === '' ? [] : [`PARAMETER stop ${JSON.stringify(stop)}`]),
    '',
  ].join('\n')
}

function notesOf(base: Place, template: PlainTemplate | undefined, shape: TurnShape | undefined): string[] {
  return [
    'ollama create NAME -f Modelfile, in this folder. FROM is read from there: an absolute path is safest',
    ...(base.file === undefined && base.directory.hubId !== undefined
      ? ['FROM takes a repository with GGUF files: name one if this repository has none']
      : []),
    ...(template === undefined ? ['the model has no chat template, so that Ollama continues texts as they are'] : []),
    ...(template?.text.includes('tools') ? ['tools are left out: the template for Ollama writes messages alone'] : []),
    ...(template?.text.includes('trim') ? ['the template trims messages, which Go’s language cannot'] : []),
    ...(template?.text.includes('strftime_now') ? ['the date in the template is that of today'] : []),
    ...(shape !== undefined && shape.system === undefined
      ? ['system messages are left out, as the template has no place for them']
      : []),
  ]
}

type Around = readonly [before: string, after: string]

/** How a template writes chats, without the first token, which llama.cpp adds itself. */
interface TurnShape {
  /** The text at the start of a chat without a system message. */
  readonly opening: string
  readonly user: Around
  readonly assistant: Around
  /** Where a system message goes: a separate turn, or the start of the first or last question. Undefined if nowhere. */
  readonly system:
    | { readonly at: 'turn'; readonly around: Around }
    | { readonly at: 'first' | 'last'; readonly glue: string }
    | undefined
  readonly prompt: string
}

interface Turn {
  readonly role: string
  readonly content: string
}

const turn = (role: string, content: string): Turn => ({ role, content })
const [SYSTEM, ASKED, ANSWERED, AGAIN] = [
  turn('system', 'probe-system'),
  turn('user', 'probe-one'),
  turn('assistant', 'probe-answer'),
  turn('user', 'probe-two'),
]
const CHATS: readonly (readonly Turn[])[] = [
  [ASKED],
  [ASKED, ANSWERED, AGAIN],
  [ASKED, ANSWERED, AGAIN, turn('assistant', 'Yes: 1 < 2.\nAnd “more”.'), turn('user', 'last')],
]

/** Throws UnsupportedError for a template that does not write chats as turns. */
export function turnShape(template: PlainTemplate, bos: string): TurnShape {
  const { name } = template
  const refuse = (what: string, got?: string) =>
    new UnsupportedError({
      where: name,
      what: `the chat template cannot be written in Go's language for Ollama: ${what}`,
      expected: 'text before and after each message, which depends on its role alone',
      ...(got !== undefined && { got }),
      hint: 'Convert to gguf, and write the Modelfile yourself',
    })
  const render = (messages: readonly Turn[], addGenerationPrompt = true) => {
    const { text } = template.render(messages, { addGenerationPrompt }, name)
    return text.startsWith(bos) ? text.slice(bos.length) : text
  }
  const parts = (messages: readonly Turn[], addGenerationPrompt = true): string[] => {
    const text = render(messages, addGenerationPrompt)
    const cut: string[] = []
    let from = 0
    for (const { content } of messages) {
      const at = text.indexOf(content, from)
      if (at < 0) throw refuse('it leaves a message out, or changes their order', JSON.stringify(text))
      cut.push(text.slice(from, at))
      from = at + content.length
    }
    return [...cut, text.slice(from)]
  }
  const between = (text: string, start: string, end: string): string => {
    if (text.length >= start.length + end.length && text.startsWith(start) && text.endsWith(end))
      return text.slice(start.length, text.length - end.length)
    throw refuse('messages look different beside others', JSON.stringify(text))
  }
  const [, plainEnd] = parts([ASKED], false)
  const [head, end] = parts([ASKED])
  const prompt = between(end, plainEnd, '')
  const answerEnd = parts([ASKED, ANSWERED], false)[2]
  const [, toAnswer, toUser] = parts([ASKED, ANSWERED, AGAIN])
  const user: Around = [between(toUser, answerEnd, ''), plainEnd]
  const assistant: Around = [between(toAnswer, plainEnd, ''), answerEnd]
  const shape: TurnShape = { opening: between(head, '', user[0]), user, assistant, system: undefined, prompt }
  const system = systemOf(shape, parts, render)
  const found = { ...shape, system }
  const withSystem = system === undefined ? [] : CHATS.map((chat) => [SYSTEM, ...chat])
  for (const chat of [...CHATS, ...withSystem]) {
    const [written, wanted] = [writeTurns(found, chat), render(chat)]
    if (written !== wanted) throw refuse('messages look different beside others', JSON.stringify(wanted))
  }
  return found
}

function systemOf(
  { user, opening }: TurnShape,
  parts: (messages: readonly Turn[]) => string[],
  render: (messages: readonly Turn[]) => string,
): TurnShape['system'] {
  try {
    const [before, glue] = parts([SYSTEM, ASKED])
    const isTurn = glue.endsWith(user[0]) && user[0] !== '' && before !== opening + user[0]
    if (isTurn) return { at: 'turn', around: [before, glue.slice(0, glue.length - user[0].length)] }
    // After an answer, some templates put the system message into the last question.
    const text = render([SYSTEM, ASKED, ANSWERED, AGAIN])
    return { at: text.indexOf(SYSTEM.content) < text.indexOf(ASKED.content) ? 'first' : 'last', glue }
  } catch (error) {
    // A template without a place for a system message refuses it or drops it.
    if (error instanceof DataError || error instanceof UnsupportedError) return undefined
    throw error
  }
}

function writeTurns({ opening, user, assistant, system, prompt }: TurnShape, chat: readonly Turn[]): string {
  const scene = chat.find(({ role }) => role === 'system')?.content
  const users = [...chat.keys()].filter((index) => chat[index].role === 'user')
  const text = chat.map(({ role, content }, index) => {
    if (role === 'system') return system?.at === 'turn' ? system.around.join(content) : ''
    if (role === 'assistant') return assistant.join(content)
    const holds = system !== undefined && system.at !== 'turn' && users.at(system.at === 'first' ? 0 : -1) === index
    return user.join(holds && scene !== undefined ? scene + system.glue + content : content)
  })
  return (scene === undefined || system?.at !== 'turn' ? opening : '') + text.join('') + prompt
}

export function goTemplate({ opening, user, assistant, system, prompt }: TurnShape): string {
  // A Go string without quotes inside, because it stands in a quoted block of the Modelfile.
  const put = (text: string) => (text === '' ? '' : `{{ ${JSON.stringify(text).replaceAll('\\"', '\\u0022')} }}`)
  const around = ([before, after]: Around, content: string) => `${put(before)}${content}${put(after)}`
  const scene = system === undefined || system.at === 'turn' ? '' : `{{ .System }}${put(system.glue)}`
  const holder = system?.at === 'first' ? '$first' : '$last'
  const merged = scene === '' ? '' : `{{ if and $.System ${holder} }}${scene.replace('.System', '$.System')}{{ end }}`
  const start = put(opening)
  return [
    start === '' ? '' : system?.at === 'turn' ? `{{ if not .System }}${start}{{ end }}` : start,
    system?.at === 'first' ? '{{ $first := true }}' : '',
    '{{ range $i, $m := .Messages }}{{ $last := eq (len (slice $.Messages $i)) 1 }}',
    system?.at === 'turn' ? `{{ if eq .Role "system" }}${around(system.around, '{{ .Content }}')}{{ end }}` : '',
    `{{ if eq .Role "user" }}${around(user, `${merged}{{ .Content }}`)}${system?.at === 'first' ? '{{ $first = false }}' : ''}{{ end }}`,
    // If the last message is an answer, Ollama continues it.
    `{{ if eq .Role "assistant" }}${put(assistant[0])}{{ .Content }}{{ if not $last }}${put(assistant[1])}{{ end }}{{ end }}`,
    `{{ if and $last (ne .Role "assistant") }}${put(prompt)}{{ end }}{{ end }}`,
  ].join('')
}
