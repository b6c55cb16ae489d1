// Collects the functions of chats, for an adapter that learns them and later reads no declarations.

import type { Chat } from '../chat.js'
import { checkCall } from './compare.js'
import { callsIn } from './forms.js'
import type { FunctionTool } from './growing-text.js'
import { addKnownTools } from './known-tools.js'

export class TakenTools {
  readonly functions: FunctionTool[] = []

  /**
   * Takes the functions of a chat, and gives the chat without them.
   *
   * @throws DataError if a function has another type than in an earlier chat, or a call fits none of the functions
   */
  takeFrom(chat: Chat, where: string): Chat {
    addKnownTools(this.functions, chat.tools ?? [], where)
    for (const [i, { tool_calls: calls = [] }] of chat.messages.entries()) {
      for (const call of callsIn(calls)) checkCall(call, this.functions, `${where}, message ${i + 1}`)
    }
    return { ...chat, tools: undefined }
  }
}
