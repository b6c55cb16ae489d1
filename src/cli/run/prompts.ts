// Prompts of `generate`: texts, or chats from a file. Decides when a text is a question of a chat.

import { type ChatMessage, DataError, type Prompt } from '../../index.js'
import { UsageError } from '../options.js'
import { readTextFile } from './data-options.js'

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

export interface Prompts {
  readonly count: number
  readonly tools: readonly object[] | undefined
  /** Texts are questions to an adapter that was trained on chats, unless --raw says otherwise. */
  for(wasTrainedOnChats: boolean): Prompt[]
}

export async function promptsOf({ prompt, messages, system, chat, raw }: Asked): Promise<Prompts> {
  if (prompt.length === 0 && messages === undefined) throw new UsageError('--prompt TEXT is missing')
  if (raw && (chat || system !== undefined || messages !== undefined)) {
    const other = chat ? '--chat' : system === undefined ? '--messages' : '--system'
    throw new UsageError(
      `--raw and ${other} cannot be used together: --raw turns the chat template off, and ${other} needs it`,
    )
  }
  const chats = messages === undefined ? [] : await readChats(messages)
  const scene = system === undefined ? [] : [{ role: 'system', content: system }]
  return {
    count: prompt.length + chats.length,
    tools: chats.find(({ tools }) => tools !== undefined)?.tools,
    for(wasTrainedOnChats) {
      const isChat = chat || system !== undefined || (wasTrainedOnChats && !raw)
      const texts = prompt.map((text) => (isChat ? [...scene, { role: 'user', content: text }] : text))
      return [...texts, ...chats.map((one) => [...scene, ...one.messages])]
    },
  }
}

/** A JSON file with one chat, or a JSONL file with one in each line. */
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
