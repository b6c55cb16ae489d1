// lowrank generate: continues prompts and answers chats with a model, with and without adapters.

import {
  type AdapterChoice,
  type ChatMessage,
  DataError,
  type GenerateResult,
  type LoraAdapter,
  type Prompt,
} from '../../../api/index.js'
import { readChatTemplate, readTextFile } from '../../../api/node/command-line.js'
import { counted } from '../../../core/base/errors.js'
import { isObject, jsonIn } from '../../../core/base/options.js'
import { flags } from '../flags.js'
import { weightedAdapters } from '../manage/merge-options.js'
import { defineCommand, repeated, text, toggle, UsageError } from '../options.js'
import { colors, printable, printableProse, printDocument, say } from '../show/terminal.js'
import { OUTPUT_OPTIONS, SESSION_OPTIONS, withSession } from './with-session.js'

interface Result extends Pick<GenerateResult, 'text' | 'tokens' | 'seconds' | 'finish' | 'seed' | 'logprobs'> {
  adapter: string | null
  prompt?: string
}

interface Choice {
  readonly name: string | null
  readonly adapter: AdapterChoice
  readonly wasTrainedOnChats: boolean
}

export const generate = defineCommand({
  name: 'generate',
  summary: 'continue texts and answer chats with a model and your adapters',
  about: [
    'Continues prompts, or answers chats. The defaults of the sampling options are in the model’s generation_config.json.',
    'If an adapter was trained on chats, each prompt is a question: lowrank puts it into the chat template. --raw turns this off.',
    'With several adapters, it loads the model once and writes one text with each adapter. Several prompts run together.',
  ].join('\n'),
  examples: [
    'lowrank generate --model models/union-3m --prompt "And the people"',
    'lowrank generate --model models/union-3m --adapter out/scripture --prompt "And the people" --temperature 0.7 --top-k 40',
    'lowrank generate --model HuggingFaceTB/SmolLM2-135M-Instruct --chat --system "Answer in one word." --prompt "What floats?"',
  ],
  subject: ['model'],
  options: {
    ...SESSION_OPTIONS,
    weight: repeated('W', 'strength of the adapter that stands before this option; default 1'),
    mix: toggle('write one text with the sum of all adapters'),
    prompt: repeated('TEXT', 'text to continue, or with --chat the question'),
    messages: text('FILE', 'chat to answer: a .json file with its messages, or a .jsonl file with a chat in each line'),
    chat: toggle('put each prompt into the chat template, as a message of the user'),
    system: text('TEXT', 'system message for the chat; also turns --chat on'),
    image: repeated(
      'FILE',
      'picture that each prompt is about, for models of texts and pictures; also turns --chat on',
    ),
    raw: toggle('continue each prompt as it is, even if the adapter was trained on chats'),
    ...flags('TrainOptions', 'chatTemplate', 'chatTemplateArgs'),
    ...flags(
      'GenerateOptions',
      ...(['maxNewTokens', 'temperature', 'topK', 'topP', 'minP', 'repetitionPenalty'] as const),
      ...(['seed', 'logprobs', 'batchSize'] as const),
    ),
    stop: repeated('TEXT', 'stop when the model writes this text; the result does not contain it'),
    ...OUTPUT_OPTIONS,
  },
  async run(values, { occurrences }) {
    const { model, dtype, adapter: folders, allowMissing, weight: _, mix, device, threads, json, ...asked } = values
    const { prompt, messages, system, image, chat: asksChat, raw, chatTemplate, ...sampling } = asked
    const chat = asksChat || (image.length > 0 && !raw)
    const weighted = weightedAdapters(occurrences)
    const prompts = await promptsOf({ prompt, messages, system, chat, raw })
    const template = await readChatTemplate(chatTemplate)
    return withSession(
      { model, dtype, adapter: folders, allowMissing, device, threads },
      async (session, signal, adapters) => {
        const options = { ...sampling, chatTemplate: template, tools: prompts.tools, signal }
        const results: Result[] = []
        const onText = json || prompts.count > 1 ? undefined : writePiece
        const choices = choicesOf(weighted, adapters, mix)
        let seconds = 0
        for (const { name, adapter, wasTrainedOnChats } of choices) {
          if (choices.length > 1) say(colors.dim(`${results.length > 0 ? '\n' : ''}${name}`))
          const all = prompts.for(wasTrainedOnChats)
          const isShown = onText !== undefined && process.stdout.isTTY && process.stderr.isTTY
          if (isShown && typeof all[0] === 'string') process.stderr.write(colors.dim(all[0]))
          const images = image.length > 0 ? all.map(() => image) : undefined
          const texts = await session.generate(all, { ...options, adapter, images, on: { text: onText } })
          if (!json) writeAll(texts, prompt)
          seconds += Math.max(...texts.map((result) => result.seconds))
          for (const [i, { text, tokens, seconds, finish, seed, logprobs }] of texts.entries()) {
            const about = texts.length > 1 ? { prompt: prompt[i] } : {}
            const scores = logprobs === undefined ? {} : { logprobs }
            results.push({ adapter: name, ...about, text, tokens, seconds, finish, seed, ...scores })
          }
        }
        const tokens = results.reduce((sum, result) => sum + result.tokens, 0)
        say(colors.dim(`${counted(tokens, 'token')}, ${(tokens / seconds).toFixed(0)} a second`))
        if (json) printDocument({ ...results[0], ...(results.length > 1 && { results }) })
        return 0
      },
      (adapters) => {
        const isChat = prompts.for(false).some((prompt) => typeof prompt !== 'string')
        const hasOthers = choicesOf(weighted, adapters, mix).some(({ wasTrainedOnChats }) => !wasTrainedOnChats)
        return isChat && hasOthers && template === undefined
      },
    )
  },
})

function choicesOf(
  weighted: readonly { adapter: string; weight?: number }[],
  adapters: ReadonlyMap<string, LoraAdapter>,
  isMix: boolean,
): Choice[] {
  const isChat = (name: string) => adapters.get(name)?.chatTemplate !== undefined
  if (weighted.length === 0) return [{ name: null, adapter: null, wasTrainedOnChats: false }]
  const single = ({ adapter: name, weight = 1 }: (typeof weighted)[number]): Choice => {
    return { name, adapter: weight === 1 ? name : { [name]: weight }, wasTrainedOnChats: isChat(name) }
  }
  if (!isMix) return weighted.map(single)
  const adapter: Record<string, number> = {}
  for (const item of weighted) adapter[item.adapter] = (adapter[item.adapter] ?? 0) + (item.weight ?? 1)
  const name = Object.keys(adapter).join(' + ')
  return [{ name, adapter, wasTrainedOnChats: weighted.some((item) => isChat(item.adapter)) }]
}

/** Writes a piece of text. On a terminal, characters that would control the terminal are made visible. */
function writePiece(piece: string): void {
  process.stdout.write(process.stdout.isTTY ? printableProse(piece) : piece)
}

function writeAll(texts: readonly GenerateResult[], prompts: readonly string[]): void {
  if (texts.length === 1) return void process.stdout.write('\n')
  for (const [i, { text }] of texts.entries()) {
    say(colors.dim(`${i > 0 ? '\n' : ''}${printable(prompts[i] ?? `chat ${i + 1}`)}`))
    writePiece(`${text}\n`)
  }
}

interface Asked {
  readonly prompt: readonly string[]
  readonly messages: string | undefined
  readonly system: string | undefined
  readonly chat: boolean
  readonly raw: boolean
}

interface FileChat {
  readonly messages: readonly ChatMessage[]
  readonly tools?: readonly object[]
}

async function promptsOf({ prompt, messages, system, chat, raw }: Asked) {
  if (prompt.length === 0 && messages === undefined) throw new UsageError('--prompt TEXT is missing')
  if (raw && (chat || system !== undefined || messages !== undefined)) {
    const conflicting = chat ? '--chat' : system === undefined ? '--messages' : '--system'
    throw new UsageError(
      `--raw and ${conflicting} cannot be used together: --raw turns the chat template off, and ${conflicting} needs it`,
    )
  }
  const chats = messages === undefined ? [] : await readChats(messages)
  const scene = system === undefined ? [] : [{ role: 'system', content: system }]
  return {
    count: prompt.length + chats.length,
    tools: chats.find(({ tools }) => tools !== undefined)?.tools,
    /** Returns the prompts. For an adapter that was trained on chats, a text is a question, unless --raw is given. */
    for(wasTrainedOnChats: boolean): Prompt[] {
      const isChat = chat || system !== undefined || (wasTrainedOnChats && !raw)
      const texts = prompt.map((text) => (isChat ? [...scene, { role: 'user', content: text }] : text))
      return [...texts, ...chats.map((chat) => [...scene, ...chat.messages])]
    },
  }
}

/** Reads a JSON file with a chat, or a JSONL file with a chat on each line. */
async function readChats(file: string): Promise<FileChat[]> {
  const content = await readTextFile(file)
  const whole = jsonIn(content)
  if (whole !== undefined) return [chatOf(whole, file)]
  const lines = content.split('\n').map((line, i) => ({ line, where: `${file}, line ${i + 1}` }))
  return lines.filter(({ line }) => line.trim() !== '').map(({ line, where }) => chatOf(jsonIn(line), where))
}

function chatOf(value: unknown, where: string): FileChat {
  const { messages, tools } = (Array.isArray(value) ? { messages: value } : (value ?? {})) as Partial<FileChat>
  const isChat = Array.isArray(messages) && messages.length > 0 && (messages as unknown[]).every(isObject)
  if (isChat) return { messages, ...(Array.isArray(tools) && { tools }) }
  throw new DataError({
    where,
    what: 'not a chat',
    expected: 'JSON: a list of messages with role and content, or an object with "messages"',
  })
}
