// `lowrank/ai-sdk`: a provider for Vercel's AI SDK that runs the model in this process. The AI SDK's own client for
// OpenAI's protocol calls the handler of `lowrank/server` instead of a network.

/** @module lowrank/ai-sdk */

import { createOpenAICompatible, type OpenAICompatibleProvider } from '@ai-sdk/openai-compatible'
import { createHandler, type Handler } from './handler.js'
import type { HandlerOptions } from './handler-options.js'

/** A provider of the AI SDK: `provider(name)` is the model with the adapter of this name. */
export type LowrankProvider = OpenAICompatibleProvider & Pick<Handler, 'session' | 'close'>

/**
 * Makes a provider for the AI SDK: `generateText`, `streamText`, tools, structured output and `embed`. Call it with the
 * name of an adapter, or with `servedModelName` for the base. Needs `ai` 7 and @ai-sdk/openai-compatible 3, and
 * @mlc-ai/web-xgrammar for structured output and forced tools.
 *
 * @returns the provider, with `session`, which adds and removes adapters, and `close`, which waits for running calls
 * @throws what `createHandler` throws
 *
 * @example
 * import { generateText } from 'ai'
 * import { createLowrank } from 'lowrank/ai-sdk'
 *
 * const lowrank = await createLowrank({ model: 'models/union-3m', adapters: { peft: 'tests/golden/peft/f32' } })
 * const { text } = await generateText({ model: lowrank.completionModel('peft'), prompt: 'And the people' })
 * console.log(text)
 * await lowrank.close()
 */
export async function createLowrank(options: HandlerOptions): Promise<LowrankProvider> {
  const handler = await createHandler(options)
  const provider = createOpenAICompatible({
    name: 'lowrank',
    baseURL: 'http://lowrank/v1',
    fetch: (input, init) => handler(new Request(input, init)),
    includeUsage: true,
    supportsStructuredOutputs: true,
  })
  return Object.assign(provider, { session: handler.session, close: handler.close })
}
