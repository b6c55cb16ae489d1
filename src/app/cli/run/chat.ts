// lowrank chat: a conversation with a model in the terminal. You can change the adapter during the conversation.

import { createInterface } from 'node:readline'
import { type AdapterSession, type ChatMessage, LowrankError, type StreamOptions } from '../../../api/index.js'
import { readChatTemplate } from '../../../api/node/command-line.js'
import { flags } from '../flags.js'
import { defineCommand, text, UsageError } from '../options.js'
import { isAbort } from '../show/interrupt.js'
import { colors, printable, printableProse, say } from '../show/terminal.js'
import { OUTPUT_OPTIONS, SESSION_OPTIONS, withSession } from './with-session.js'

const { json: _, ...RUN_OPTIONS } = OUTPUT_OPTIONS

const HELP = [
  '/adapter NAME      answer with this adapter: a folder, or an id on the Hub; without a name: the model alone',
  '/mix A=0.5 B=0.5   answer with a weighted sum of adapters',
  '/compare A B       answer with each of them; base is the model alone. The first answer becomes part of the chat',
  '/reset             forget what was said',
  '/exit              end',
].join('\n')

export const chat = defineCommand({
  name: 'chat',
  summary: 'talk with a model, and change its adapter while you talk',
  about: [
    'Answers each line as the next message of a chat. Ctrl-C ends an answer, and at an empty line the program.',
    'Lines that begin with / are for lowrank:',
    HELP,
  ].join('\n'),
  examples: [
    'lowrank chat --adapter my-adapter',
    'lowrank chat --model HuggingFaceTB/SmolLM2-135M-Instruct --system "Answer in one word."',
  ],
  subject: ['model'],
  options: {
    ...SESSION_OPTIONS,
    system: text('TEXT', 'system message for the chat'),
    ...flags('TrainOptions', 'chatTemplate', 'chatTemplateArgs'),
    ...flags('GenerateOptions', 'maxNewTokens', 'temperature', 'topK', 'topP', 'minP', 'repetitionPenalty', 'seed'),
    ...RUN_OPTIONS,
  },
  async run({ model, dtype, adapter, allowMissing, device, threads, system, chatTemplate, ...sampling }) {
    const template = await readChatTemplate(chatTemplate)
    return withSession(
      { model, dtype, adapter, allowMissing, device, threads },
      async (session, signal) => {
        const options = { ...sampling, chatTemplate: template }
        await talk(session, { options, system, adapter: adapter[0], signal })
        return 0
      },
      (adapters) =>
        template === undefined && [...adapters.values()].every(({ chatTemplate }) => chatTemplate === undefined),
    )
  },
})

interface Voice {
  readonly name: string
  readonly adapter: string | Readonly<Record<string, number>> | null
}

interface TalkSetup {
  readonly options: StreamOptions
  readonly system?: string | undefined
  readonly adapter?: string | undefined
  readonly signal: AbortSignal
  readonly input?: NodeJS.ReadableStream
  readonly output?: NodeJS.WritableStream
  readonly isTerminal?: boolean
}

export async function talk(
  session: Pick<AdapterSession, 'add' | 'adapters' | 'stream'>,
  setup: TalkSetup,
): Promise<void> {
  const { options, system, signal, input = process.stdin, output = process.stdout } = setup
  const isTerminal = setup.isTerminal ?? (process.stdin.isTTY === true && process.stdout.isTTY === true)
  const start: ChatMessage[] = system === undefined ? [] : [{ role: 'system', content: system }]
  let messages = [...start]
  let voices = [voiceOf(setup.adapter)]
  let answering: AbortController | undefined
  const lines = createInterface({
    input,
    terminal: isTerminal,
    prompt: colors.cyan('› '),
    ...(isTerminal && { output }),
  })
  lines.on('SIGINT', () => (answering === undefined ? lines.close() : answering.abort()))
  signal.addEventListener('abort', () => lines.close(), { once: true })
  if (isTerminal) say(colors.dim('/help shows what can be changed. Ctrl-C ends an answer.'))
  if (isTerminal) lines.prompt()
  for await (const line of lines) {
    if (line.startsWith('/')) {
      try {
        if (/^\/(exit|quit)\b/.test(line)) break
        if (line.startsWith('/reset')) messages = [...start]
        else voices = (await voicesFor(line, session)) ?? voices
      } catch (error) {
        say(colors.red(printable((error as Error).message)))
      }
    } else if (line.trim() !== '') {
      const asked = [...messages, { role: 'user', content: line }]
      let first: string | undefined
      for (const { name, adapter } of voices) {
        if (voices.length > 1) say(colors.dim(`${name}:`))
        answering = new AbortController()
        const answer = await answerTo(asked, answering.signal, adapter)
        first ??= answer
        if (answering.signal.aborted || signal.aborted) break
      }
      answering = undefined
      // If the answer was stopped, keep the part that was written.
      if (first !== '') messages = [...asked, { role: 'assistant', content: first! }]
    }
    if (signal.aborted) break
    if (isTerminal) lines.prompt()
  }
  lines.close()

  async function answerTo(asked: ChatMessage[], ended: AbortSignal, adapter: Voice['adapter']): Promise<string> {
    let answer = ''
    try {
      const stream = session.stream(asked, { ...options, adapter, signal: AbortSignal.any([signal, ended]) })
      for await (const piece of stream) {
        answer += piece
        output.write(isTerminal ? printableProse(piece) : piece)
      }
    } catch (error) {
      // Go on after an error: another adapter or a new chat may work.
      if (error instanceof LowrankError) say(colors.red(printable(error.message)))
      else if (!isAbort(error)) throw error
    }
    output.write('\n')
    return answer
  }
}

function voiceOf(name: string | undefined): Voice {
  return name === undefined || name === 'base' ? { name: 'base', adapter: null } : { name, adapter: name }
}

/** Loads the adapters that a command such as /adapter or /mix names. Returns undefined for any other line. */
async function voicesFor(line: string, session: Pick<AdapterSession, 'add' | 'adapters'>) {
  const [command, ...names] = line.trim().split(/\s+/)
  const load = async (name: string) => {
    if (name !== 'base' && !session.adapters.includes(name)) await session.add(name, name)
  }
  if (command === '/adapter' && names.length <= 1) {
    for (const name of names) await load(name)
    return [voiceOf(names[0])]
  }
  if (command === '/compare' && names.length > 1) {
    for (const name of names) await load(name)
    return names.map(voiceOf)
  }
  if (command === '/mix' && names.length > 0) {
    const weights = names.map((text) => /^(.+)=([\d.]+)$/.exec(text))
    if (weights.includes(null)) throw new UsageError('/mix takes adapters with weights, such as /mix a=0.5 b=1')
    for (const weight of weights) await load(weight![1])
    return [
      { name: names.join(' '), adapter: Object.fromEntries(weights.map((match) => [match![1], Number(match![2])])) },
    ]
  }
  say(HELP)
  return undefined
}
