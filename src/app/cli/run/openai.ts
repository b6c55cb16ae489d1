// lowrank openai: takes fine-tunes home from OpenAI and other providers, trains them again, and compares.

import { readChatTemplate, readTextFile } from '../../../api/node/command-line.js'
import { counted } from '../../../core/base/errors.js'
import { jsonIn } from '../../../core/base/options.js'
import { flags } from '../flags.js'
import { choice, defineCommand, MODEL, readNumber, repeated, required, single, text, toggle } from '../options.js'
import { interruptible } from '../show/interrupt.js'
import { colors, note, print, printable, printDocument, say, table, warn } from '../show/terminal.js'

const PROVIDERS = ['openai', 'azure', 'together'] as const
const FOLDER = 'the folder in which everything is kept; only you can read it'
const JSON_OPTION = toggle('print one JSON document on stdout')
const SHOWN = 20

export const openaiExport = defineCommand({
  name: 'openai export',
  summary: 'take fine-tuning jobs, files and stored chats home from OpenAI',
  about: [
    'Fetches jobs with their events and checkpoints, files, batches, stored chats, evaluations and the list of models.',
    'Sends GET alone. OPENAI_API_KEY is the key; each project needs its own, and its data join those in the folder.',
    'Run it again to fetch what is new or was missing. index.html in the folder shows what there is. See docs/leaving-openai.md.',
  ].join('\n'),
  examples: [],
  subject: ['dir'],
  options: {
    dir: required('DIR', FOLDER),
    provider: choice(PROVIDERS, 'where to fetch from', 'openai'),
    json: JSON_OPTION,
  },
  async run({ dir, provider, json }) {
    const node = await import('../../openai/node/entry.js')
    const manifest = await interruptible('Stopping. Run the same command again to go on.', (signal, progress) =>
      node.exportAll({
        ...{ out: dir, provider: node[provider], signal },
        on: { progress: ({ done, total, name }) => progress.update(done, total, `  ${name}`) },
      }),
    )
    const { lists, files, missing, seen } = manifest
    if (json) printDocument({ ...manifest })
    else print(table([['list', 'items'], ...Object.entries(lists), ['files on the disk', Object.keys(files).length]]))
    for (const { organization, project } of seen) say(printable(`Project seen: ${project} of ${organization}`))
    if (missing.length > 0) warn(`${counted(missing.length, 'thing')} cannot be read:`)
    for (const { path, what } of missing.slice(0, SHOWN)) say(printable(`  ${path}: ${what}`))
    say(`${colors.bold(dir)}/index.html shows everything.`)
    return Object.values(lists).some((items) => items > 0) ? 0 : 1
  },
})

export const openaiRecord = defineCommand({
  name: 'openai record',
  summary: 'ask the old models while they answer, within a budget',
  about: [
    'Asks the models of the jobs in the folder, soonest to end first: held-out prompts, then stored chats, then training prompts.',
    'Nothing is sent without --budget, a limit in dollars for the folder over all runs. Each request is reserved at the most that it can cost before it is sent.',
    'Every request has store: false. Run it again to go on.',
  ].join('\n'),
  examples: [],
  subject: ['dir'],
  options: {
    dir: required('DIR', 'the folder of lowrank openai export'),
    budget: single('DOLLARS', 'the most that this folder may ever cost, such as 20', readNumber),
    prices: text('FILE', 'JSON with the prices of models, in the place of those in this package'),
    maxTokens: single('N', 'the most tokens of an answer. Default: 512', readNumber),
    batch: toggle('use the Batch API: half the price, and answers within a day'),
    deployment: repeated('MODEL=NAME', 'the name of a model’s deployment, for Azure'),
    json: JSON_OPTION,
  },
  async run({ dir, budget, prices: file, maxTokens, batch, deployment, json }) {
    const node = await import('../../openai/node/entry.js')
    const prices = file === undefined ? undefined : node.checkPrices(jsonIn(await readTextFile(file)), file)
    const names = Object.fromEntries(
      deployment.map((pair) => [pair.slice(0, pair.lastIndexOf('=')), pair.slice(pair.lastIndexOf('=') + 1)]),
    )
    const report = await interruptible('Stopping. Run the same command again to go on.', (signal, progress) =>
      node.recordAnswers({
        ...{ dir, budget, prices, maxTokens, batch, names, signal },
        on: { progress: ({ done, total, spent }) => progress.update(done, total, `  $${spent.toFixed(2)}`) },
      }),
    )
    if (json) printDocument({ ...report })
    for (const [model, day] of Object.entries(report.gone)) warn(printable(`${model} did not exist any more on ${day}`))
    for (const [what, count] of Object.entries(report.notes)) say(printable(`${counted(count, 'prompt')}: ${what}`))
    say(`${counted(report.answers, 'new answer')}; $${report.spent.toFixed(2)} of $${budget} are spent or reserved.`)
    return 0
  },
})

export const openaiMove = defineCommand({
  name: 'openai move',
  summary: 'train the jobs again on your own base, and compare them with the old models',
  about: [
    'Trains each job from your own files by its method: supervised, dpo, or reinforcement with its grader. Then asks the base and the adapter the held-out prompts,',
    'and compares their answers with the recorded ones. comparison.html in the folder has the verdicts. Answers of the old model are trained on only with --terms-read, and kept out again if validation gets no better.',
    'Run it again to go on, or to compare after more answers are recorded.',
  ].join('\n'),
  examples: [],
  subject: ['dir'],
  options: {
    dir: required('DIR', 'the folder of lowrank openai export'),
    base: repeated(MODEL, 'a base to train on; default: one that fits the memory'),
    redact: toggle('mask e-mail addresses, phone and card numbers before training'),
    termsRead: toggle(
      'train on what a provider’s model wrote too, if that makes validation better; read its clause first',
    ),
    chatTemplate: text('FILE', 'a chat template (Jinja), in the place of the base’s'),
    ...flags('TrainOptions', 'graderModels', 'threads'),
    ...flags('EvaluateOptions', 'judge', 'judgeModel'),
    maxTokens: single('N', 'the most tokens of an answer. Default: 512', readNumber),
    machine: single('DOLLARS', 'what an hour of this machine costs, for the table of costs', readNumber),
    json: JSON_OPTION,
  },
  async run({ dir, base, machine, chatTemplate, json, ...options }) {
    const node = await import('../../openai/node/entry.js')
    const template = await readChatTemplate(chatTemplate)
    const jobs = await interruptible('Finishing the step. Run the same command again to go on.', (signal, progress) =>
      node.moveJobs({
        ...options,
        ...{ dir, chatTemplate: template, dollarsPerHour: machine, signal },
        judgeKey: process.env.LOWRANK_JUDGE_KEY,
        ...(base.length > 0 && { bases: base }),
        on: {
          step: ({ step, totalSteps, loss }, job) =>
            progress.update(step, totalSteps, `  ${job}, loss ${loss.toFixed(3)}`),
          progress: ({ done, total, name }) => progress.update(done, total, `  answers for ${name}`),
        },
      }),
    )
    if (json) printDocument({ jobs })
    for (const { model, base: on, adapter, notes, comparisons } of jobs) {
      say(printable(`${colors.bold(model)} on ${on}: ${adapter ?? 'not moved'}`))
      for (const line of notes) note(printable(line))
      for (const [title, { verdict }] of Object.entries(comparisons)) say(printable(`  ${title}: ${verdict}`))
    }
    return jobs.some(({ adapter }) => adapter === undefined) ? 1 : 0
  },
})

export const openaiCheck = defineCommand({
  name: 'openai check',
  summary: 'list the stored chats that lowrank serve would refuse',
  about: [
    'Opens the base, asks it every stored or recorded chat with the fields that its client sent, for one token each,',
    'and lists what it refuses and why. Exits with 1 if there is something. Sends nothing to anybody.',
  ].join('\n'),
  examples: [],
  subject: ['dir'],
  options: {
    dir: required('DIR', 'the folder of lowrank openai export'),
    base: text(MODEL, 'the model that will answer; default: the base of the first job that was moved'),
    chatTemplate: text('FILE', 'a chat template (Jinja), in the place of the base’s'),
    json: JSON_OPTION,
  },
  async run({ dir, base, chatTemplate, json }) {
    const node = await import('../../openai/node/entry.js')
    const template = await readChatTemplate(chatTemplate)
    const report = await interruptible('Stopping.', (signal, progress) =>
      node.checkTraffic({
        ...{ dir, base, chatTemplate: template, signal },
        on: { progress: ({ done, total }) => progress.update(done, total, '  chats') },
      }),
    )
    if (json) printDocument({ ...report })
    const refused = Object.entries(report.refused)
    for (const [why, places] of json ? [] : refused) {
      print(printable(`${counted(places.length, 'chat')}: ${why}`))
      for (const place of places.slice(0, 3)) print(printable(`  ${place}`))
    }
    const count = refused.reduce((sum, [, places]) => sum + places.length, 0)
    say(`${counted(report.asked, 'chat')} asked, ${count} refused.`)
    return count > 0 ? 1 : 0
  },
})
