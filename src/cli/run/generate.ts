// lowrank generate: continues prompts and answers chats with a model, with and without adapters.

import { requireChatTemplate } from '../../index/model.js'
import type { AdapterChoice, GenerateResult, LoraAdapter } from '../../index.js'
import { flags } from '../flags.js'
import { weightedAdapters } from '../manage/merge-options.js'
import { defineCommand, repeated, text, toggle } from '../options.js'
import { printable, printableProse } from '../show/escape.js'
import { colors, printDocument, say } from '../show/terminal.js'
import { readChatTemplate } from './data-options.js'
import { Prompts } from './prompts.js'
import { OUTPUT_OPTIONS, SESSION_OPTIONS, withSession } from './with-session.js'

interface Result extends Pick<GenerateResult, 'text' | 'tokens' | 'seconds' | 'finish' | 'seed' | 'logprobs'> {
  adapter: string | null
  prompt?: string
}

interface Choice {
  readonly name: string | null
  readonly adapter: AdapterChoice
  readonly wasTrainedOnChats: boolean
}

export const generate = defineCommand({
  name: 'generate',
  summary: 'continue texts and answer chats with a model and your adapters',
  about: [
    'Continues prompts, or answers chats. The defaults of the sampling options are in the model’s generation_config.json.',
    'If an adapter was trained on chats, each prompt is a question: lowrank puts it into the chat template. --raw turns this off.',
    'With several adapters, it loads the model once and writes one text with each adapter. Several prompts run together.',
  ].join('\n'),
  examples: [
    'lowrank generate --model models/union-3m --prompt "And the people"',
    'lowrank generate --model models/union-3m --adapter out/scripture --prompt "And the people" --temperature 0.7 --top-k 40',
    'lowrank generate --model HuggingFaceTB/SmolLM2-135M-Instruct --chat --system "Answer in one word." --prompt "What floats?"',
  ],
  subject: ['model'],
  options: {
    ...SESSION_OPTIONS,
    weight: repeated('W', 'strength of the adapter that stands before this option; default 1'),
    mix: toggle('write one text with the sum of all adapters'),
    prompt: repeated('TEXT', 'text to continue, or with --chat the question'),
    messages: text('FILE', 'chat to answer: a .json file with its messages, or a .jsonl file with a chat in each line'),
    chat: toggle('put each prompt into the chat template, as a message of the user'),
    system: text('TEXT', 'system message for the chat; also turns --chat on'),
    image: repeated(
      'FILE',
      'picture that each prompt is about, for models of texts and pictures; also turns --chat on',
    ),
    raw: toggle('continue each prompt as it is, even if the adapter was trained on chats'),
    ...flags('TrainOptions', 'chatTemplate', 'chatTemplateArgs'),
    ...flags(
      'GenerateOptions',
      ...(['maxNewTokens', 'temperature', 'topK', 'topP', 'minP', 'repetitionPenalty'] as const),
      ...(['seed', 'logprobs', 'batchSize'] as const),
    ),
    stop: repeated('TEXT', 'stop when the model writes this text; the result does not contain it'),
    ...OUTPUT_OPTIONS,
  },
  async run(values, { occurrences }) {
    const { model, dtype, adapter: folders, allowMissing, weight: _, mix, device, threads, json, ...asked } = values
    const { prompt, messages, system, image, chat: asksChat, raw, chatTemplate, ...sampling } = asked
    const chat = asksChat || (image.length > 0 && !raw)
    const weighted = weightedAdapters(occurrences)
    const prompts = await Prompts.of({ prompt, messages, system, chat, raw })
    const template = await readChatTemplate(chatTemplate)
    return withSession(
      { model, dtype, adapter: folders, allowMissing, device, threads },
      async (session, signal, adapters) => {
        const options = { ...sampling, chatTemplate: template, tools: prompts.tools, signal }
        const results: Result[] = []
        const writer = new Writer(json, prompts)
        const choices = choicesOf(weighted, adapters, mix)
        let seconds = 0
        for (const { name, adapter, wasTrainedOnChats } of choices) {
          if (choices.length > 1) say(colors.dim(`${results.length > 0 ? '\n' : ''}${name}`))
          const all = prompts.for(wasTrainedOnChats)
          writer.begin(all)
          const images = image.length > 0 ? all.map(() => image) : undefined
          const texts = await session.generate(all, { ...options, adapter, images, onText: writer.onText })
          writer.end(texts)
          seconds += Math.max(...texts.map((result) => result.seconds))
          for (const [i, { text, tokens, seconds, finish, seed, logprobs }] of texts.entries()) {
            const about = texts.length > 1 ? { prompt: prompts.textOf(i) } : {}
            const scores = logprobs === undefined ? {} : { logprobs }
            results.push({ adapter: name, ...about, text, tokens, seconds, finish, seed, ...scores })
          }
        }
        const tokens = results.reduce((sum, result) => sum + result.tokens, 0)
        say(colors.dim(`${tokens} tokens, ${(tokens / seconds).toFixed(0)} a second`))
        if (json) printDocument({ ...results[0], ...(results.length > 1 && { results }) })
        return 0
      },
      async (source, adapters) => {
        const choices = choicesOf(weighted, adapters, mix).filter(({ wasTrainedOnChats }) => !wasTrainedOnChats)
        const isChat = choices.some(() => prompts.for(false).some((one) => typeof one !== 'string'))
        if (isChat && template === undefined) await requireChatTemplate(source)
      },
    )
  },
})

function choicesOf(
  weighted: readonly { adapter: string; weight?: number }[],
  adapters: ReadonlyMap<string, LoraAdapter>,
  isMix: boolean,
): Choice[] {
  const isChat = (name: string) => adapters.get(name)?.chatTemplate !== undefined
  if (weighted.length === 0) return [{ name: null, adapter: null, wasTrainedOnChats: false }]
  const single = ({ adapter: name, weight = 1 }: (typeof weighted)[number]): Choice => {
    return { name, adapter: weight === 1 ? name : { [name]: weight }, wasTrainedOnChats: isChat(name) }
  }
  if (!isMix) return weighted.map(single)
  const adapter: Record<string, number> = {}
  for (const one of weighted) adapter[one.adapter] = (adapter[one.adapter] ?? 0) + (one.weight ?? 1)
  const name = Object.keys(adapter).join(' + ')
  return [{ name, adapter, wasTrainedOnChats: weighted.some((one) => isChat(one.adapter)) }]
}

class Writer {
  readonly #json: boolean
  readonly #prompts: Prompts
  readonly #isWatched = process.stdout.isTTY === true

  constructor(json: boolean, prompts: Prompts) {
    this.#json = json
    this.#prompts = prompts
  }

  get onText(): ((piece: string) => void) | undefined {
    return this.#json || this.#prompts.count > 1 ? undefined : (piece) => this.#write(piece)
  }

  /** On a terminal a text follows its prompt; into a pipe the text alone goes. */
  begin(asked: readonly unknown[]): void {
    const isShown = !this.#json && this.#isWatched && process.stderr.isTTY && asked.length === 1
    if (isShown && typeof asked[0] === 'string') process.stderr.write(colors.dim(asked[0]))
  }

  end(texts: readonly GenerateResult[]): void {
    if (this.#json) return
    if (texts.length === 1) process.stdout.write('\n')
    else {
      for (const [i, { text }] of texts.entries()) {
        say(colors.dim(`${i > 0 ? '\n' : ''}${printable(this.#prompts.textOf(i) ?? `chat ${i + 1}`)}`))
        this.#write(`${text}\n`)
      }
    }
  }

  #write(piece: string): void {
    process.stdout.write(this.#isWatched ? printableProse(piece) : piece)
  }
}
