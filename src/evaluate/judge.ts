// Judgements of two answers by a model on any server in OpenAI's form, in both orders: the rest is a tie.

import { ConfigError, RuntimeError } from '../base/errors.js'

export interface JudgeSettings {
  /** Address of the server, up to /v1. */
  readonly url: string
  readonly model: string
  readonly key?: string | undefined
}

export interface JudgedPair {
  readonly prompt: string
  readonly wanted: string
  readonly first: string
  readonly second: string
}

const TRIES = 4
const WAIT_MS = 500
const MAX_TEXT = 8000

export function checkJudge(
  url: string | undefined,
  model: string | undefined,
  key?: string,
): JudgeSettings | undefined {
  if (url === undefined && model === undefined) return undefined
  if (url === undefined)
    throw new ConfigError({ where: 'judge', what: 'missing: `judgeModel` needs the server that runs it' })
  if (model === undefined)
    throw new ConfigError({ where: 'judgeModel', what: 'missing: the name of the model that judges' })
  if (URL.canParse(url) && /^https?:$/.test(new URL(url).protocol)) return { url: url.replace(/\/+$/, ''), model, key }
  throw new ConfigError({
    where: 'judge',
    what: 'not an address',
    expected: 'a URL such as http://localhost:8080/v1',
    got: url,
  })
}

/** The second answer beside the first: 1 better, 0.5 a tie, 0 worse. */
export async function judge(pair: JudgedPair, settings: JudgeSettings, signal?: AbortSignal): Promise<number> {
  if (pair.first === pair.second) return 0.5
  const { first, second } = pair
  const [straight, turned] = await Promise.all([
    ask({ ...pair, first, second }, settings, signal),
    ask({ ...pair, first: second, second: first }, settings, signal),
  ])
  if (straight === 'B' && turned === 'A') return 1
  return straight === 'A' && turned === 'B' ? 0 : 0.5
}

async function ask(
  { prompt, wanted, first, second }: JudgedPair,
  { url, model, key }: JudgeSettings,
  signal: AbortSignal | undefined,
): Promise<string | undefined> {
  const content = [
    'Two answers to the same question follow, and a reference answer. Which answer is better? Reply with one word: A, B or TIE.',
    ...[`[Question]\n${cut(prompt)}`, `[Reference]\n${cut(wanted)}`, `[A]\n${cut(first)}`, `[B]\n${cut(second)}`],
    'The better answer (A, B or TIE):',
  ].join('\n\n')
  const body = JSON.stringify({ model, messages: [{ role: 'user', content }], temperature: 0, max_tokens: 16 })
  const headers = { 'content-type': 'application/json', ...(key && { authorization: `Bearer ${key}` }) }
  for (let tries = 1; ; tries++) {
    const answer = await fetch(`${url}/chat/completions`, {
      method: 'POST',
      headers,
      body,
      signal: signal ?? null,
    }).catch((cause: Error) => {
      if (signal?.aborted) throw cause
      return cause
    })
    if (!(answer instanceof Error) && answer.ok) {
      const { choices } = (await answer.json().catch(() => ({}))) as { choices?: { message?: { content?: unknown } }[] }
      const text = choices?.[0]?.message?.content
      if (typeof text === 'string') return /\b([AB]|TIE)\b/.exec(text.replace(/<think>.*<\/think>/s, ''))?.[1]
      throw new RuntimeError({
        where: url,
        what: 'the judge sent no message',
        expected: 'an answer in the form of OpenAI',
      })
    }
    const isBusy = answer instanceof Error || answer.status === 429 || answer.status >= 500
    if (isBusy && tries < TRIES) {
      await new Promise((resolve) => setTimeout(resolve, WAIT_MS * 2 ** (tries - 1)))
      continue
    }
    const got =
      answer instanceof Error ? answer.message : `status ${answer.status}: ${(await answer.text()).slice(0, 200)}`
    throw new RuntimeError({
      where: url,
      what: 'the judge does not answer',
      got,
      hint: 'Check `judge` and `judgeModel`',
    })
  }
}

function cut(text: string): string {
  return text.length > MAX_TEXT ? `${text.slice(0, MAX_TEXT)} …` : text
}
