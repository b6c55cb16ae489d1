// Turns: a function answers a text that has ended, and the model goes on after the answer, as with tools in TRL. The
// tokens of answers have weight 0, so nothing of them is learned.

import { ConfigError } from '../../core/base/errors.js'
import { describe, isObject } from '../../core/base/options.js'
import { Random } from '../../core/base/random.js'
import { requireTokenizer } from '../../model/model-folder.js'
import { encodeReply } from '../../run/generate/messages.js'
import type { ChatOptions } from '../../run/session.js'
import { aboutText, inTime, type OnTurn, type Turn, type TurnInput } from './graders/rewards.js'
import type { Trainer } from './trainer.js'
import type { Sample } from './trainer-options.js'

export interface Trajectory {
  readonly sample: Sample
  readonly turns: readonly Turn[]
}

interface TurnOptions extends Omit<ChatOptions, 'tools'> {
  /** Most tokens after the prompt, answers included. An answer that has no room is left out, and the text ends. */
  readonly maxTokens: number
  readonly temperature: number
  readonly topP: number
  readonly seed: number
  /** Seconds that an answer may take. */
  readonly seconds: number
}

export async function takeTurns(
  trainer: Trainer,
  samples: readonly Sample[],
  about: readonly Pick<TurnInput, 'prompt' | 'messages' | 'answer' | 'row'>[],
  onTurn: OnTurn | undefined,
  { maxTokens, seed, seconds, temperature, topP, ...chat }: TurnOptions,
): Promise<Trajectory[]> {
  const all = samples.map((sample): Trajectory => ({ sample, turns: [] }))
  const { contextLength = Number.POSITIVE_INFINITY } = trainer.model
  const endOf = ({ promptTokens }: Sample) => Math.min(promptTokens + maxTokens, contextLength)
  if (onTurn === undefined) return all
  let open = [...all.keys()].filter((i) => hasEnded(all[i].sample))
  for (let round = 1; open.length > 0; round++) {
    const answered = await Promise.all(
      open.map(async (i) => {
        const { sample, turns } = all[i]
        const input = { ...about[i], text: sample.text, turns }
        const reply = await inTime(() => onTurn(input), seconds, aboutText('onTurn', input))
        if (reply === undefined || reply === null) return []
        const ids = [...sample.ids, ...(await idsOf(trainer, reply, sample.ids, chat))]
        return ids.length < endOf(sample) ? [{ i, reply, ids }] : []
      }),
    )
    const going = answered.flat()
    if (going.length === 0) break
    const maxNewTokens = Math.max(...going.map(({ i, ids }) => endOf(all[i].sample) - ids.length))
    const later = await trainer.sample(
      going.map(({ ids }) => ({ ids })),
      {
        ...{ maxNewTokens, temperature, topP, seed: new Random(seed, `turn/${round}`).uint32() },
        // A prompt of tokens is not known to be a chat, so say which token ends a turn.
        stopTokenIds: [...new Set(going.map(({ i }) => all[i].sample.ids.at(-1)!))],
      },
    )
    for (const [k, { i, reply }] of going.entries()) {
      const { sample, turns } = all[i]
      all[i] = {
        sample: joined(trainer, sample, later[k][0], endOf(sample)),
        turns: [...turns, { text: sample.text, reply }],
      }
    }
    open = going.map(({ i }) => i).filter((i) => hasEnded(all[i].sample))
  }
  return all
}

/** The answer as tokens, without the token that ends the turn before it: the model has sampled that one already. */
async function idsOf({ model }: Trainer, reply: unknown, before: Int32Array, chat: ChatOptions): Promise<number[]> {
  if (typeof reply === 'string') return requireTokenizer(model).encode(reply, { specialTokens: false })
  if (!Array.isArray(reply) || reply.length === 0 || !reply.every(isObject)) {
    const expected = 'a text, a list of messages, or undefined'
    throw new ConfigError({ where: 'onTurn', what: 'not an answer', expected, got: describe(reply) })
  }
  const ids = await encodeReply(model, reply as never, chat)
  return ids[0] === before.at(-1) ? ids.slice(1) : ids
}

function hasEnded({ finish }: Sample): boolean {
  return finish === 'eos'
}

/** `later` begins with the tokens of `first` and those of the answer. */
function joined({ model }: Trainer, first: Sample, later: Sample, end: number): Sample {
  const isCut = later.ids.length > end
  const [ids, weights, logprobs] = [later.ids.slice(0, end), later.weights.slice(0, end), later.logprobs.slice(0, end)]
  weights.set(first.weights)
  logprobs.set(first.logprobs)
  const text = isCut ? requireTokenizer(model).decode([...ids.subarray(later.promptTokens)]) : later.text
  const finish = isCut ? 'max-new-tokens' : later.finish
  return { ...later, ids, weights, logprobs, text, finish, promptTokens: first.promptTokens }
}
