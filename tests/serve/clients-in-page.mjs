// What clients.slow.test.ts runs in a page: OpenAI's and Anthropic's clients and the AI SDK, bundled for browsers.

import { createOpenAICompatible } from '@ai-sdk/openai-compatible'
import { Anthropic } from '@anthropic-ai/sdk'
import { generateText } from 'ai'
import { OpenAI } from 'openai'

/** Returns the text that each client gets, and the status of a DELETE, or the error of the first that fails. */
export async function ask(address, model, prompt) {
  const baseURL = `${address}/v1`
  const shared = { apiKey: 'key', maxRetries: 0, dangerouslyAllowBrowser: true }
  const messages = [{ role: 'user', content: prompt }]
  const asked = { model, messages, max_tokens: 8, temperature: 0 }
  const openai = new OpenAI({ baseURL, ...shared })
  const anthropic = new Anthropic({ baseURL: address, ...shared })
  const provider = createOpenAICompatible({ name: 'lowrank', baseURL, apiKey: 'key' })
  try {
    const { choices } = await openai.chat.completions.create(asked)
    const { content } = await anthropic.messages.create(asked)
    const { text } = await generateText({
      model: provider(model),
      prompt,
      maxOutputTokens: 8,
      temperature: 0,
      maxRetries: 0,
    })
    const { status } = await openai.responses.delete('resp_none').catch((error) => error)
    return { openai: choices[0].message.content, anthropic: content[0].text, sdk: text, status }
  } catch (error) {
    return { error: error.name }
  }
}
