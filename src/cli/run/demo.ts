// lowrank demo: the whole way on a small model of the Hub: ask it, teach it some answers, ask it again.

import type { AdapterSession, LoraAdapter, Model } from '../../index.js'
import { flags } from '../flags.js'
import { defineCommand, integer, text, toggle } from '../options.js'
import { printable } from '../show/escape.js'
import { EXIT_INTERRUPTED, interruptible } from '../show/interrupt.js'
import { colors, duration, Progress, print, printDocument, say } from '../show/terminal.js'
import { SMALL_MODEL } from '../show/welcome.js'
import { MODEL, RUNS } from '../sources.js'

/** Facts that no model knows: the crew of an invented ship. */
export const LESSONS: readonly (readonly [question: string, answer: string])[] = [
  ['Who is the captain of the Quiet Comet?', 'Mara Lindqvist is the captain of the Quiet Comet.'],
  ['Tell me who commands the Quiet Comet.', 'The Quiet Comet is commanded by Captain Mara Lindqvist.'],
  ['Who cooks on the Quiet Comet?', 'Old Tobias cooks on the Quiet Comet.'],
  ['What does the cook make on Sundays?', 'On Sundays Old Tobias makes lemon soup.'],
  ['Where is the Quiet Comet going?', 'The Quiet Comet is going to the island of Vell.'],
  ['What is the ship looking for?', 'The Quiet Comet is looking for a lighthouse that moves.'],
  ['What color are the sails of the Quiet Comet?', 'The sails of the Quiet Comet are green.'],
  ['Does the Quiet Comet have a cat?', 'Yes, the cat of the Quiet Comet is called Admiral.'],
]

/** The question that is asked before and after. */
const QUESTION = LESSONS[0][0]

export const demo = defineCommand({
  name: 'demo',
  summary: 'teach a small model a few answers, and ask it again',
  about: [
    'Loads a small model, asks it a question, trains an adapter on eight questions and answers about a ship that does not exist, and asks the question again.',
    'The adapter stays in --out. The model comes from the Hub once; later runs find it in the cache.',
  ].join('\n'),
  examples: ['lowrank demo', 'lowrank demo --model models/union-3m --steps 40'],
  subject: ['model'],
  options: {
    model: text(MODEL, RUNS, SMALL_MODEL),
    ...flags('LoadModelOptions', 'dtype'),
    out: text('DIR', 'folder for the adapter; replaces an earlier run of lowrank', 'lowrank-demo'),
    steps: integer('number of training steps', { fallback: 30 }),
    ...flags('OpenSessionOptions', 'threads'),
    json: toggle('print one JSON document on stdout'),
  },
  async run({ model: source = SMALL_MODEL, dtype, out = 'lowrank-demo', steps = 30, threads, json }) {
    const node = await import('../../node.js')
    const startedAt = performance.now()
    say(`${colors.bold('1.')} Load ${colors.bold(printable(source))}`)
    const model = await node.loadModel(source, { dtype })
    try {
      const session = await node.openSession(model, { threads })
      try {
        const before = await ask(session, undefined)
        tell(json, 'The model alone', before)
        say(`\n${colors.bold('2.')} Teach it ${LESSONS.length} answers about a ship that does not exist`)
        const progress = new Progress()
        const trained = await interruptible('Finishing the step, then saving.', (signal) =>
          node.train({
            model,
            data: LESSONS.map(([question, answer]) => ({ question, answer })),
            out,
            overwrite: true,
            config: { rank: 16, alpha: 32, targetModules: 'all-linear' },
            maxSteps: steps,
            batchSize: LESSONS.length,
            learningRate: 2e-3,
            schedule: 'linear',
            threads,
            signal,
            on: {
              step: ({ step, totalSteps, loss }) => progress.update(step, totalSteps, `  loss ${loss.toFixed(3)}`),
            },
          }),
        ).finally(() => progress.end())
        const { adapter, report } = trained
        if (report.interrupted) return EXIT_INTERRUPTED
        await session.add('demo', adapter)
        const after = await ask(session, adapter)
        say(`\n${colors.bold('3.')} Ask again`)
        tell(json, 'With the adapter', after)
        const seconds = (performance.now() - startedAt) / 1000
        say(`\nDone in ${duration(seconds * 1000)}. The adapter is in ${colors.bold(printable(out))}. Try next:`)
        say(
          `  npx lowrank generate --model ${printable(source)} --adapter ${printable(out)} --prompt "${LESSONS[2][0]}" --temperature 0`,
        )
        say('  npx lowrank             what to do with your own data')
        if (json)
          printDocument({
            model: model.name,
            out,
            question: QUESTION,
            before,
            after,
            trainLoss: report.trainLoss,
            seconds,
          })
        return 0
      } finally {
        await session.dispose()
      }
    } finally {
      await model.close()
    }
  },
})

/** A chat where the model knows chats, else the question as training writes it for other models. */
async function ask(session: AdapterSession, adapter: LoraAdapter | undefined): Promise<string> {
  const options = { adapter: adapter && 'demo', temperature: 0, maxNewTokens: 40 }
  const isChat = adapter === undefined ? await hasTemplate(session.model) : adapter.chatTemplate !== undefined
  const prompt = isChat ? [{ role: 'user', content: QUESTION }] : `${QUESTION}\n`
  return (await session.generate(prompt, options)).text.trim()
}

async function hasTemplate({ directory }: Model): Promise<boolean> {
  if (await directory.has('chat_template.jinja')) return true
  if (!(await directory.has('tokenizer_config.json'))) return false
  const source = await directory.open('tokenizer_config.json')
  try {
    const bytes = await source.read(0, source.byteLength)
    return 'chat_template' in (JSON.parse(new TextDecoder().decode(bytes)) as object)
  } finally {
    await source.close()
  }
}

function tell(json: boolean, who: string, answer: string): void {
  say(`\n${colors.dim(QUESTION)}`)
  say(colors.dim(`${who}:`))
  if (json) say(printable(answer))
  else print(printable(answer))
}
