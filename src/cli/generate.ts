// lowrank generate: continues a prompt with a model, with and without adapters.

import { GENERATE_DEFAULTS, type GenerateResult, type LoraAdapter } from '../index.js'
import { printableProse } from './escape.js'
import { EXIT_INTERRUPTED, interruptible } from './interrupt.js'
import { decimal, defineCommand, integer, repeated, required, toggle } from './options.js'
import { colors, printDocument, say } from './terminal.js'

interface Result extends Pick<GenerateResult, 'text' | 'tokens' | 'seconds' | 'finish' | 'seed'> {
  adapter: string | null
}

export const generate = defineCommand({
  name: 'generate',
  summary: 'write text with a model and its adapters',
  about: [
    'Continues a prompt. Without sampling options it takes the most likely token each time.',
    'With several adapters the model is loaded once and writes one text with each.',
  ].join('\n'),
  examples: [
    'lowrank generate --model models/union-3m --prompt "And the people"',
    'lowrank generate --model models/union-3m --adapter out/scripture --prompt "And the people" --temperature 0.7 --top-k 40',
  ],
  options: {
    model: required('DIR|FILE', 'model folder (config.json, tokenizer.json, onnx/model.onnx) or its .onnx file'),
    adapter: repeated('DIR', 'adapter folder'),
    prompt: required('TEXT', 'what to continue'),
    maxNewTokens: integer('most tokens to write', { fallback: GENERATE_DEFAULTS.maxNewTokens }),
    temperature: decimal(
      '0: the most likely token; 1: as the model says; above: more varied',
      '0, or 1 with --top-k or --top-p',
    ),
    topK: integer('choose among the N most likely tokens'),
    topP: decimal('choose among the most likely tokens that add up to this probability', 1),
    seed: integer('the same seed gives the same text; default: a fresh one', { least: 0 }),
    threads: integer('processor threads to use; default: ONNX Runtime’s choice'),
    json: toggle('print one JSON document on stdout'),
  },
  async run({ model: path, adapter: folders, prompt, threads, json, ...sampling }) {
    const node = await import('../node.js')
    const adapters: [string, LoraAdapter][] = []
    for (const folder of folders) adapters.push([folder, await node.loadAdapter(folder)])
    const model = await node.loadModel(path)
    try {
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
            const { text, tokens, seconds, finish, seed } = result
            results.push({ adapter: adapter ?? null, text, tokens, seconds, finish, seed })
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
