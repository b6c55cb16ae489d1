// Rewards: functions that judge texts. Whatever they do, the run ends with an error that names the prompt and the text.

import { messageOf, NumericError, RuntimeError } from '../../../core/base/errors.js'
import type { ChatMessage, MessageOfParts } from '../../../model/text/chat.js'

/** A text that is to be judged. */
export interface RewardInput {
  /** The prompt as text: of a chat, the content of its last message. */
  readonly prompt: string
  /** The messages of a chat, without the text. Undefined if the prompt is not a chat. */
  readonly messages: readonly MessageOfParts[] | undefined
  /** The answer that the record holds, if it holds one: `answer`, `completion` or `solution`. */
  readonly answer: string | undefined
  /** The text that the model wrote; after turns, the last one. */
  readonly text: string
  /** Number of tokens that the model wrote. */
  readonly tokens: number
  /** Earlier texts of the model, each with the answer that `onTurn` gave. */
  readonly turns: readonly Turn[]
  /** The record. */
  readonly row: Readonly<Record<string, unknown>>
}

/** Judges a text: a higher number is better; true is 1, false 0. null: it cannot judge this one. */
export type Reward = (input: RewardInput) => number | boolean | null | Promise<number | boolean | null>

/** A text of the model, and what answered it. */
export interface Turn {
  readonly text: string
  readonly reply: string | readonly ChatMessage[]
}

/** A text that has ended and may be answered, such as a call of a tool. */
export type TurnInput = Omit<RewardInput, 'tokens'>

/**
 * Answers a text of the model, which then goes on: messages if the prompt is a chat, such as `{ role: 'tool', content
 * }`, or else a text. undefined ends the turns. Nothing of an answer is learned.
 */
export type OnTurn = (input: TurnInput) => Turn['reply'] | undefined | Promise<Turn['reply'] | undefined>

const SHOWN = 200

/** The value of each reward for a text; NaN for null. */
export async function judgeText(rewards: readonly Reward[], input: RewardInput, seconds: number): Promise<number[]> {
  const values: number[] = []
  for (const [i, reward] of rewards.entries()) {
    const about = aboutText(`reward ${reward.name || i + 1}`, input)
    const given = await inTime(() => reward(input), seconds, about).catch((error) => {
      endReward(reward)
      throw error
    })
    const value = typeof given === 'boolean' ? Number(given) : given
    if (value !== null && !Number.isFinite(value)) {
      throw new NumericError({ ...about, what: 'not a finite number', got: String(value) })
    }
    values.push(value ?? Number.NaN)
  }
  return values
}

/** Ends what a reward runs in, if it is a worker. */
export function endReward(reward: Reward & { readonly end?: () => void }): void {
  reward.end?.()
}

/** The part of an error that shows the text that a function failed for. */
export function aboutText(where: string, { prompt, text }: Pick<RewardInput, 'prompt' | 'text'>) {
  return { where, hint: `The prompt: ${shown(prompt)}. The text: ${shown(text)}` }
}

export function inTime<T>(
  work: () => T | Promise<T>,
  seconds: number,
  about: { where: string; hint: string },
): Promise<T> {
  let timer: ReturnType<typeof setTimeout> | undefined
  const late = new Promise<never>((_, reject) => {
    const error = new RuntimeError({ ...about, what: `it gave nothing within ${seconds} seconds` })
    timer = setTimeout(() => reject(error), 1000 * seconds)
  })
  const value = (async () => work())().catch((cause) => {
    throw new RuntimeError({ ...about, what: `it threw: ${messageOf(cause)}`, cause })
  })
  return Promise.race([value, late]).finally(() => clearTimeout(timer))
}

function shown(text: string): string {
  return JSON.stringify(text.length > SHOWN ? `${text.slice(0, SHOWN)}…` : text)
}
