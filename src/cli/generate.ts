// lowrank generate: continues a prompt with a model, with and without adapters.

import { GENERATE_DEFAULTS, type GenerateResult } from '../index.js'
import { printableProse } from './escape.js'
import { decimal, defineCommand, integer, required } from './options.js'
import { colors, printDocument, say } from './terminal.js'
import { OUTPUT_OPTIONS, SESSION_OPTIONS, withSession } from './with-session.js'

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
    ...SESSION_OPTIONS,
    prompt: required('TEXT', 'text to continue'),
    maxNewTokens: integer('number of tokens to write at most', { fallback: GENERATE_DEFAULTS.maxNewTokens }),
    temperature: decimal(
      '0: always the most likely token; 1: as likely as the model says; above 1: more varied',
      '0, or 1 with --top-k or --top-p',
    ),
    topK: integer('draw from the N most likely tokens'),
    topP: decimal('draw from the most likely tokens that together have this probability', 1),
    seed: integer('the same seed gives the same text; default: a new one each time', { least: 0 }),
    ...OUTPUT_OPTIONS,
  },
  async run({ model, dtype, adapter: folders, prompt, threads, json, ...sampling }) {
    return withSession({ model, dtype, adapter: folders, threads }, async (session, signal) => {
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
  },
})
