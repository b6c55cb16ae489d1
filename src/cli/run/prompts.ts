// Prompts of `generate`: texts, or chats from a file. Decides when a text is a question of a chat.

import { type ChatMessage, DataError, type Prompt } from '../../index.js'
import { UsageError } from '../options.js'
import { readTextFile } from './data-options.js'

export interface Asked {
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

export class Prompts {
  readonly #asked: Asked
  readonly #chats: readonly FileChat[]

  private constructor(asked: Asked, chats: readonly FileChat[]) {
    this.#asked = asked
    this.#chats = chats
  }

  static async of(asked: Asked): Promise<Prompts> {
    const { prompt, messages, system, chat, raw } = asked
    if (prompt.length === 0 && messages === undefined) throw new UsageError('--prompt TEXT is missing')
    if (raw && (chat || system !== undefined || messages !== undefined)) {
      const other = chat ? '--chat' : system === undefined ? '--messages' : '--system'
      throw new UsageError(
        `--raw and ${other} cannot be used together: --raw turns the chat template off, and ${other} needs it`,
      )
    }
    return new Prompts(asked, messages === undefined ? [] : await readChats(messages))
  }

  get count(): number {
    return this.#asked.prompt.length + this.#chats.length
  }

  textOf(index: number): string | undefined {
    return this.#asked.prompt[index]
  }

  get tools(): readonly object[] | undefined {
    return this.#chats.find(({ tools }) => tools !== undefined)?.tools
  }

  for(wasTrainedOnChats: boolean): Prompt[] {
    const { prompt, system, chat, raw } = this.#asked
    const isChat = chat || system !== undefined || (wasTrainedOnChats && !raw)
    const scene = system === undefined ? [] : [{ role: 'system', content: system }]
    const texts = prompt.map((text) => (isChat ? [...scene, { role: 'user', content: text }] : text))
    return [...texts, ...this.#chats.map(({ messages }) => [...scene, ...messages])]
  }
}

async function readChats(file: string): Promise<FileChat[]> {
  const content = await readTextFile(file)
  const whole = parse(content)
  if (whole !== undefined) return [chatOf(whole, file)]
  const lines = content.split('\n').map((line, i) => ({ line, where: `${file}, line ${i + 1}` }))
  return lines.filter(({ line }) => line.trim() !== '').map(({ line, where }) => chatOf(parse(line), where))
}

function parse(text: string): unknown {
  try {
    return JSON.parse(text)
  } catch {
    return undefined
  }
}

function chatOf(value: unknown, where: string): FileChat {
  const { messages, tools } = (Array.isArray(value) ? { messages: value } : (value ?? {})) as Partial<FileChat>
  const isChat = Array.isArray(messages) && messages.length > 0 && messages.every((one) => typeof one === 'object')
  if (isChat) return { messages, ...(Array.isArray(tools) && { tools }) }
  throw new DataError({
    where,
    what: 'not a chat',
    expected: 'JSON: a list of messages with role and content, or an object with "messages"',
  })
}
