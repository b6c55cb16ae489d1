// lowrank data synthesize: a teacher answers prompts, and its answers become chats to train on.

import type { MessageOfParts } from '../../../api/index.js'
import { questionsOfInput, readChatTemplate } from '../../../api/node/command-line.js'
import { counted } from '../../../core/base/errors.js'
import { askChat, checkAddress, withoutThoughts } from '../../../core/base/post-json.js'
import { flags } from '../flags.js'
import { ADAPTER, defineCommand, required, text, UsageError } from '../options.js'
import { interruptible } from '../show/interrupt.js'
import { say, warn } from '../show/terminal.js'
import { groupsOf } from './rows.js'
import { withSession } from './with-session.js'

const TOGETHER = 16

type Chat = readonly MessageOfParts[]

interface Answer {
  readonly text: string
  /** It ended because it was too long. */
  readonly isCut: boolean
}

export const synthesize = defineCommand({
  name: 'data synthesize',
  summary: 'let a teacher answer prompts, and write the chats',
  about: [
    'Prints chats as records to train on: each prompt, and what the teacher answers. A teacher is a model, or a server with OpenAI’s API.',
    'A record of DATA has "prompt" (a text or messages), "question" or "messages". An answer at the end of the messages is left out.',
    'Answers that are empty, or that --max-new-tokens cuts, are not printed. LOWRANK_TEACHER_KEY is the key of a server.',
  ].join('\n'),
  examples: [
    'lowrank data synthesize models/data/chats.jsonl --teacher HuggingFaceTB/SmolLM2-135M-Instruct --max-new-tokens 64',
  ],
  subject: ['data'],
  options: {
    data: required('FILE|DIR', 'records with prompts: .jsonl, .json, .csv, .tsv or .parquet'),
    teacher: required('DIR|ID|URL', 'what answers: a model, or the address of a server up to /v1'),
    teacherModel: text('NAME', 'the model’s name at the server'),
    adapter: text(ADAPTER, 'adapter that the teacher answers with'),
    system: text('TEXT', 'system message that the teacher gets before each prompt; the chats do not have it'),
    ...flags('CheckDataOptions', 'columns', 'dtype', 'chatTemplate', 'chatTemplateArgs'),
    ...flags('GenerateOptions', 'maxNewTokens', 'temperature', 'topP', 'seed'),
    ...flags('OpenSessionOptions', 'device', 'threads'),
  },
  async run({ data, columns, system, teacher, teacherModel, adapter, ...values }) {
    const { maxNewTokens, temperature, topP, seed, dtype, device, threads, chatTemplateArgs } = values
    const sampling = { maxNewTokens, temperature, topP, seed }
    const scene = system === undefined ? [] : [{ role: 'system', content: system }]
    const writeChats = async (signal: AbortSignal, answersTo: (chats: Chat[]) => Promise<Answer[]>) => {
      let [written, leftOut] = [0, 0]
      for await (const chats of groupsOf(questionsOfInput(data, columns), TOGETHER)) {
        signal.throwIfAborted()
        const answers = await answersTo(chats.map((chat) => [...scene, ...chat]))
        for (const [i, { text, isCut }] of answers.entries()) {
          const content = withoutThoughts(text).trim()
          if (isCut || content === '') {
            leftOut++
            continue
          }
          process.stdout.write(`${JSON.stringify({ messages: [...chats[i], { role: 'assistant', content }] })}\n`)
          written++
        }
      }
      if (leftOut > 0) warn(`${counted(leftOut, 'answer')} left out: empty, or cut at the largest number of new tokens`)
      say(`Wrote ${counted(written, 'chat')}`)
      return written > 0 ? 0 : 1
    }
    if (/^https?:/.test(teacher)) {
      if (adapter !== undefined) throw new UsageError('--adapter needs a --teacher whose weights are here')
      if (teacherModel === undefined)
        throw new UsageError('--teacher-model NAME is missing: the model’s name at the server')
      const url = checkAddress(teacher, 'teacher')
      const work = (signal: AbortSignal) =>
        writeChats(signal, (chats) => {
          const shared = { model: teacherModel, max_completion_tokens: maxNewTokens, temperature, top_p: topP, seed }
          const asking = { key: process.env.LOWRANK_TEACHER_KEY, who: 'the teacher', signal }
          return Promise.all(chats.map((messages) => askChat(url, { ...shared, messages }, asking)))
        })
      return interruptible('Stopping.', work)
    }
    if (teacherModel !== undefined) throw new UsageError('--teacher-model needs a --teacher that is a server')
    const chatTemplate = await readChatTemplate(values.chatTemplate)
    return withSession(
      { model: teacher, dtype, adapter: adapter === undefined ? [] : [adapter], allowMissing: false, device, threads },
      (session, signal) =>
        writeChats(signal, async (chats) => {
          const options = { ...sampling, adapter, chatTemplate, chatTemplateArgs, signal }
          const answers = await session.generate(chats, options)
          return answers.map(({ text, finish }) => ({
            text,
            isCut: finish === 'max-new-tokens' || finish === 'context',
          }))
        }),
      (adapters) => chatTemplate === undefined && adapters.get(adapter ?? '')?.chatTemplate === undefined,
    )
  },
})
