// lowrank generate: continues a prompt with a model, with and without adapters.

import { otherBase } from '../index/base-name.js'
import { GENERATE_DEFAULTS, type GenerateResult, type LoraAdapter } from '../index.js'
import { printable, printableProse } from './escape.js'
import { EXIT_INTERRUPTED, interruptible } from './interrupt.js'
import { decimal, defineCommand, integer, repeated, required, text, toggle, UsageError } from './options.js'
import { ADAPTER, dtype, MODEL, RUNS } from './sources.js'
import { colors, printDocument, say, warn } from './terminal.js'

interface Result extends Pick<GenerateResult, 'text' | 'tokens' | 'seconds' | 'finish' | 'seed'> {
  adapter: string | null
}

export const generate = defineCommand({
  name: 'generate',
  summary: 'write text with a model and its adapters',
  about: [
    'Continues a prompt. Without sampling options, it takes the most likely token each time.',
    'With several adapters, it loads the model once and writes one text with each adapter.',
  ].join('\n'),
  examples: [
    'lowrank generate --model models/union-3m --prompt "And the people"',
    'lowrank generate --model models/union-3m --adapter out/scripture --prompt "And the people" --temperature 0.7 --top-k 40',
  ],
  options: {
    model: text(MODEL, `${RUNS}; default: the base of the first adapter`),
    dtype: dtype(),
    adapter: repeated(ADAPTER, 'adapter: a folder, or an id on the Hub'),
    prompt: required('TEXT', 'text to continue'),
    maxNewTokens: integer('number of tokens to write at most', { fallback: GENERATE_DEFAULTS.maxNewTokens }),
    temperature: decimal(
      '0: always the most likely token; 1: as likely as the model says; above 1: more varied',
      '0, or 1 with --top-k or --top-p',
    ),
    topK: integer('draw from the N most likely tokens'),
    topP: decimal('draw from the most likely tokens that together have this probability', 1),
    seed: integer('the same seed gives the same text; default: a new one each time', { least: 0 }),
    threads: integer('processor threads to use; default: ONNX Runtime’s choice'),
    json: toggle('print one JSON document on stdout'),
  },
  async run({ model: named, dtype, adapter: folders, prompt, threads, json, ...sampling }) {
    if (named === undefined && folders.length === 0) throw new UsageError(`--model ${MODEL} is missing`)
    const node = await import('../node.js')
    const adapters: [string, LoraAdapter][] = []
    for (const folder of folders) adapters.push([folder, await node.loadAdapter(folder)])
    const source = named ?? adapters[0][1].config.baseModel
    if (source === undefined)
      throw new UsageError(`${folders[0]} does not name its base: give it with --model ${MODEL}`)
    if (named === undefined) say(`The base is ${colors.bold(printable(source))}, as ${folders[0]} names it`)
    const model = await node.loadModel(source, { dtype })
    try {
      for (const [folder, { config }] of adapters) {
        const other = otherBase(folder, config.baseModel, model)
        if (other !== undefined) warn(other)
      }
      const session = await node.openSession(model, { adapters: Object.fromEntries(adapters), threads })
      try {
        return await interruptible('Stopping.', async (interrupt) => {
          const closed = new AbortController()
          process.stdout.once('error', () => closed.abort())
          const signal = AbortSignal.any([interrupt, closed.signal])
          const results: Result[] = []
          const isWatched = process.stdout.isTTY === true
          for (const adapter of folders.length > 0 ? folders : [undefined]) {
            if (folders.length > 1) say(colors.dim(`${results.length > 0 ? '\n' : ''}${adapter}`))
            // The text alone goes into a pipe; on a terminal it follows its prompt.
            if (!json && isWatched && process.stderr.isTTY) process.stderr.write(colors.dim(prompt))
            const onText = json
              ? undefined
              : (piece: string) => void process.stdout.write(isWatched ? printableProse(piece) : piece)
            const result = await session.generate(prompt, { ...sampling, adapter, onText, signal })
            const { tokens, seconds, finish, seed } = result
            results.push({ adapter: adapter ?? null, text: result.text, tokens, seconds, finish, seed })
            if (!json) process.stdout.write('\n')
          }
          const tokens = results.reduce((sum, result) => sum + result.tokens, 0)
          const seconds = results.reduce((sum, result) => sum + result.seconds, 0)
          say(colors.dim(`${tokens} tokens, ${(tokens / seconds).toFixed(0)} a second`))
          if (json) printDocument({ ...results[0], ...(results.length > 1 && { results }) })
          return 0
        })
      } catch (error) {
        if (!(error instanceof DOMException && error.name === 'AbortError')) throw error
        return EXIT_INTERRUPTED
      } finally {
        await session.dispose()
      }
    } finally {
      await model.close()
    }
  },
})
