// Requests to servers with an API like OpenAI's: without redirects, bounded in size and time, and repeated if the
// server is busy.

import { ConfigError, messageOf, RuntimeError } from './errors.js'
import type { SignalLike } from './globals.js'
import { withoutPassword } from './options.js'

const TRIES = 4
const WAIT_MS = 500
const SECONDS = 120
const MOST_BYTES = 4_000_000

/** @throws ConfigError if it is not an address. Without a slash at the end */
export function checkAddress(url: unknown, where: string): string {
  const isAddress = typeof url === 'string' && URL.canParse(url) && /^https?:$/.test(new URL(url).protocol)
  if (isAddress) return url.replace(/\/+$/, '')
  throw new ConfigError({
    where,
    what: 'not an address',
    expected: 'a URL such as http://localhost:8080/v1',
    got: withoutPassword(String(url)),
  })
}

interface Asking {
  readonly key?: string | undefined
  readonly hint?: string
  readonly signal?: SignalLike | undefined
}

/** Sends JSON and gives the JSON of the answer. @throws RuntimeError if there is none */
export async function postJson(
  url: string,
  body: unknown,
  { key, what, hint, signal }: Asking & { readonly what: string },
): Promise<unknown> {
  const headers = { 'content-type': 'application/json', ...(key && { authorization: `Bearer ${key}` }) }
  const fail = (got: string, cause?: unknown) =>
    new RuntimeError({ where: withoutPassword(url), what, got, ...(hint && { hint }), cause })
  for (let tries = 1; ; tries++) {
    const deadline = AbortSignal.timeout(1000 * SECONDS)
    const ended = signal === undefined ? deadline : AbortSignal.any([deadline, signal as AbortSignal])
    let answer: { status: number; text: string }
    try {
      const init = { method: 'POST', headers, body: JSON.stringify(body), redirect: 'manual', signal: ended } as const
      const response = await fetch(url, init)
      answer = { status: response.status, text: await textOf(response) }
    } catch (cause) {
      if (signal?.aborted) throw cause
      const isLost = cause instanceof TypeError && tries < TRIES
      if (!isLost) throw fail(messageOf(cause), cause)
      answer = { status: 503, text: messageOf(cause) }
    }
    const { status, text } = answer
    if (status >= 200 && status < 300) {
      try {
        return JSON.parse(text)
      } catch (cause) {
        throw fail(`no JSON: ${text.slice(0, 200)}`, cause)
      }
    }
    const isBusy = status === 429 || status >= 500
    if (!isBusy || tries === TRIES) throw fail(`status ${status}: ${text.slice(0, 200)}`)
    await new Promise((resolve) => setTimeout(resolve, WAIT_MS * 2 ** (tries - 1)))
  }
}

async function textOf(response: Response): Promise<string> {
  const decoder = new TextDecoder()
  let [text, bytes] = ['', 0]
  const reader = response.body?.getReader()
  for (;;) {
    const { value, done } = (await reader?.read()) ?? { done: true }
    if (done || value === undefined) return text + decoder.decode()
    bytes += value.length
    if (bytes > MOST_BYTES) {
      await reader?.cancel().catch(() => {})
      throw new Error(`an answer of more than ${MOST_BYTES} bytes`)
    }
    text += decoder.decode(value, { stream: true })
  }
}

/** Asks `/chat/completions` for a message. If none comes, throws RuntimeError, in which the server is called `who`. */
export async function askChat(url: string, body: object, { who, ...asking }: Asking & { readonly who: string }) {
  const answer = await postJson(`${url}/chat/completions`, body, { ...asking, what: `${who} does not answer` })
  const { choices } = (answer ?? {}) as { choices?: { message?: { content?: unknown }; finish_reason?: unknown }[] }
  const { message, finish_reason } = (Array.isArray(choices) ? choices[0] : undefined) ?? {}
  const text = message?.content
  if (typeof text === 'string') return { text: withoutThoughts(text), isCut: finish_reason === 'length' }
  throw new RuntimeError({ where: url, what: `${who} sent no message`, expected: 'an answer in the form of OpenAI' })
}

/** An answer without what the model thought before it. */
export function withoutThoughts(text: string): string {
  return text.replace(/<think>.*<\/think>/s, '')
}
