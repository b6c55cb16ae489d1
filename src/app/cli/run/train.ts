// lowrank train: trains an adapter on records, and writes a folder that PEFT can read.

import { readFile } from 'node:fs/promises'
import { join } from 'node:path'
import type { LoraAdapter, Source, TrainEvents, TrainOptions, TrainResult } from '../../../api/index.js'
import { readChatTemplate, rescueAdapter } from '../../../api/node/command-line.js'
import { counted } from '../../../core/base/errors.js'
import { flags } from '../flags.js'
import {
  ADAPTER,
  defineCommand,
  flagOf,
  MODEL,
  type Option,
  RUNS,
  repeated,
  text,
  toggle,
  UsageError,
} from '../options.js'
import { showCurve } from '../show/curve.js'
import { EXIT_INTERRUPTED, Interrupted, interruptible } from '../show/interrupt.js'
import { colors, duration, note, Progress, printable, printDocument, say, thousands, warn } from '../show/terminal.js'
import { inRunFile, readRunFile } from './text-files.js'
import { baseOfAdapter, PROMPT_OPTIONS, withPrompts } from './with-session.js'

const CONFIG_OPTIONS = [
  ...(['rank', 'alpha', 'dropout', 'targetModules', 'excludeModules', 'useRslora', 'useDora', 'rankPattern'] as const),
  ...(['alphaPattern', 'bias', 'modulesToSave', 'init', 'seed'] as const),
]

function unlessInFile<T>(option: Option<T>): Option<T | undefined> {
  return { ...option, isRequired: false, about: `${option.about}; required unless --config names it` }
}

export const train = defineCommand({
  name: 'train',
  summary: 'fine-tune an adapter on your texts or chats',
  about: [
    'Trains a LoRA adapter: a small set of new weights that learns from your data. The model itself does not change.',
    'Records are {"text": "…"}, {"prompt": "…", "completion": "…"}, {"question": "…", "answer": "…"} or chats: {"messages": […]}.',
    'From {"text"} records, the adapter learns the whole text. From the others, it learns the completion, the answer, or the messages of the assistant.',
    'With another --task, the records have other fields: see Tasks below, and docs/tasks.md.',
    '`lowrank data` checks the records first, and shows which tokens it learns.',
  ].join('\n'),
  sections: {
    Options: ['model', 'data', 'out', 'task', 'epochs', 'learningRate', 'batchSize', 'maxLength', 'rank', 'evalSplit'],
    'Model and data': [
      'dtype',
      'modules',
      'columns',
      'chatTemplate',
      'chatTemplateArgs',
      'toolForm',
      'toolsInAdapter',
      'queryPrompt',
      'documentPrompt',
      'skipInvalid',
      'termsRead',
      'packing',
    ],
    Adapter: [
      ...(['alpha', 'dropout', 'targetModules', 'excludeModules', 'numLayers', 'useRslora', 'useDora'] as const),
      ...(['rankPattern', 'alphaPattern', 'bias', 'modulesToSave', 'trainedTokens', 'newHead', 'init'] as const),
    ],
    Optimizer: [
      ...(['maxSteps', 'gradientAccumulation', 'schedule', 'warmupRatio', 'warmupSteps', 'loraPlusRatio'] as const),
      ...(['weightDecay', 'maxGradNorm', 'taskOptions', 'preset', 'seed'] as const),
    ],
    'Rewards, or a teacher': ['rewards', 'graderModels', 'teacher'],
    Evaluation: ['evalData', 'evalEvery', 'keep', 'bestMetric', 'earlyStopping', 'sample'],
    'Stop, continue and repeat': ['resume', 'keepState', 'saveEvery', 'overwrite', 'config', 'adapter', 'gate'],
    'Device and output': ['device', 'threads', 'memory', 'json'],
  },
  more: async () => ({ Tasks: await tasksInHelp() }),
  examples: [
    'lowrank train --model models/union-3m --data models/data/scripture.jsonl --out out/scripture --learning-rate 5e-3',
    'lowrank train --model models/union-3m --data models/data/scripture.jsonl --out out/scripture-2 --save-every 20 --overwrite',
  ],
  subject: ['model'],
  options: {
    ...flags(
      'TrainOptions',
      ...([
        'model',
        'dtype',
        'data',
        'evalData',
        'evalSplit',
        'columns',
        'chatTemplate',
        'chatTemplateArgs',
        'toolForm',
        'toolsInAdapter',
      ] as const),
      'out',
    ),
    config: text(
      'FILE',
      'YAML or JSON file with the options of the run. Names are those in code, such as maxSteps. Options of the command line replace those of the file. run.json in the folder of an adapter is such a file',
    ),
    ...flags('TrainOptions', 'task', 'taskOptions', 'preset'),
    ...flags('LoraConfig', ...CONFIG_OPTIONS),
    ...flags('TrainOptions', 'trainedTokens', 'epochs', 'maxSteps', 'batchSize', 'maxLength'),
    ...flags('TrainOptions'),
    ...PROMPT_OPTIONS,
    ...flags('LoadModelOptions', 'dtype'),
    adapter: text(ADAPTER, 'adapter to train further, in place of a new one'),
    gate: text(
      'FILE',
      'records that are not trained on: the trained --adapter takes the place of the old one if its loss on them is surely not higher',
    ),
    sample: repeated('TEXT', 'prompt that the model answers before training, at each evaluation and at the end'),
    model: unlessInFile(text(MODEL, RUNS)),
    data: unlessInFile(flags('TrainOptions', 'data').data),
    task: text(
      'NAME',
      'what the model learns: see Tasks below, grpo to learn from --rewards, or distill to learn from a --teacher; default: the task that the first record fits',
    ),
    json: toggle('print one JSON document on stdout'),
  },
  async run(values, { occurrences }) {
    const { json, config: file, adapter: trained, gate, ...flagValues } = values
    const given = new Set(Object.keys(flagValues).filter((key) => occurrences.some(({ flag }) => flag === flagOf(key))))
    const fromFile = file === undefined ? {} : await readRunFile(file)
    const options = withPrompts(await withFile(fromFile, flagValues, given))
    if (gate !== undefined && trained === undefined) throw new UsageError('--gate needs --adapter')
    if (gate !== undefined && options.out !== undefined)
      throw new UsageError('--gate and --out cannot be used together')
    const adapter =
      trained === undefined ? undefined : await (await import('../../../api/node.js')).loadAdapter(trained)
    const { model = trained && (await baseOfAdapter(trained, adapter)), data } = options
    const out = options.out as string
    // A misspelled name in the file is a likely reason, so the message lists the names in the file.
    const inSight = file === undefined ? '' : `; ${file} has ${Object.keys(fromFile).join(', ') || 'no options'}`
    if (model === undefined) throw new UsageError(`--model ${MODEL} is missing${inSight}`)
    if (data === undefined) throw new UsageError(`--data FILE|DIR is missing${inSight}`)
    if (options.resume && options.overwrite) throw new UsageError('--resume and --overwrite cannot be used together')
    const node = await import('../../../api/node.js')
    const inFile = (error: unknown): never => {
      throw file === undefined ? error : inRunFile(error, file, given, fromFile)
    }
    if (out === undefined && gate === undefined) throw new UsageError('--out DIR is missing')
    let stepMs: number | undefined
    const onStep = (elapsedMs: number) => {
      stepMs = elapsedMs
    }
    const result = await interruptible(
      // A step cannot be interrupted, so say how long it takes.
      () =>
        `Finishing the step${stepMs === undefined ? '' : `, which takes about ${Math.ceil(stepMs / 1000)} s`}, then saving.`,
      (signal, progress) => {
        const own = { ...(adapter && { adapter }), model, data, signal, on: narrate(progress, onStep) }
        return node.train({ ...options, ...withKeys(options), ...own })
      },
    ).catch(async (error) => {
      if (error instanceof Interrupted) {
        say('Stopped before training. Run the same command again: the download continues.')
        throw error
      }
      await rescue(error, out ?? trained)
      return inFile(error)
    })
    const { report } = result
    if (gate !== undefined) return passGate(result, { ...options, model, folder: trained!, gate, json })
    const { interrupted, stoppedEarly, keptStep } = report
    if (!interrupted) showCurve(report.trainLoss)
    if (interrupted && options.overwrite && report.steps === 0) {
      say(`Stopped before the first step: ${colors.bold(out)} did not change.`)
      if (json) printDocument({ ...report, out })
      return EXIT_INTERRUPTED
    }
    if (stoppedEarly)
      say(`Ended early, after ${counted(options.earlyStopping!, 'evaluation')} in a row without a better one.`)
    if (!interrupted && keptStep > 0 && keptStep < report.steps)
      say(`Kept the weights of step ${keptStep}, whose evaluation was best.`)
    if (report.strength < 1) say(`Kept ${report.strength} of the change, which does better than all of it.`)
    say(
      `${interrupted ? 'Stopped' : 'Done'} after ${counted(report.steps, 'step')} in ${duration(report.seconds * 1000)}: ` +
        `${counted(report.trainableParams, 'parameter')} in ${colors.bold(out)}`,
    )
    if (interrupted)
      say(`To continue, run the same command with --resume${options.overwrite ? ' in place of --overwrite' : ''}.`)
    else {
      const card = await readFile(join(out, 'README.md'), 'utf8').catch(() => '')
      const [call] = /^npx lowrank .*$/m.exec(card) ?? []
      if (call !== undefined) say(`Try it: ${call}`)
    }
    for (const warning of report.warnings) warn(warning)
    if (json) printDocument({ ...report, out })
    return interrupted ? EXIT_INTERRUPTED : 0
  },
})

/** Saves what was trained elsewhere, if it could not be written to its place. */
async function rescue(error: unknown, out: string): Promise<void> {
  const { adapter, code } = (error ?? {}) as { adapter?: LoraAdapter; code?: string }
  // What ended because of its numbers has saved its last good adapter.
  if (adapter === undefined || code === 'NUMERIC') return
  const folder = await rescueAdapter(adapter, out)
  warn(
    folder === undefined ? 'The trained adapter could not be saved anywhere.' : `The trained adapter is in ${folder}`,
  )
}

/** Keys of the models that graders name, and of the teacher, are in the environment alone, so that no file has them. */
function withKeys({ graderModels, teacher, taskOptions }: Partial<TrainOptions>): Partial<TrainOptions> {
  const { LOWRANK_GRADER_KEY: key, LOWRANK_TEACHER_KEY: teacherKey } = process.env
  if (teacher !== undefined && teacherKey !== undefined) return { taskOptions: { ...taskOptions, teacherKey } }
  if (graderModels === undefined || key === undefined) return {}
  const servers = Object.entries(graderModels).map(([name, url]) => [
    name,
    typeof url === 'string' ? { url, key } : url,
  ])
  return { graderModels: Object.fromEntries(servers) }
}

async function withFile(
  file: Partial<TrainOptions>,
  values: Readonly<Record<string, unknown>>,
  given: ReadonlySet<string>,
): Promise<Partial<TrainOptions>> {
  const isConfig = (key: string) => (CONFIG_OPTIONS as readonly string[]).includes(key)
  const pick = (keys: readonly string[]) => Object.fromEntries(keys.map((key) => [key, values[key]]))
  const { warmupRatio, warmupSteps, ...others } = file
  const warmup = given.has('warmupRatio') || given.has('warmupSteps') ? {} : { warmupRatio, warmupSteps }
  const config = pick(CONFIG_OPTIONS.filter((key) => given.has(key)))
  const template = given.has('chatTemplate') && (await readChatTemplate(values.chatTemplate as string))
  return {
    ...others,
    ...warmup,
    ...pick([...given].filter((key) => !isConfig(key))),
    ...(template && { chatTemplate: template }),
    ...(Object.keys(config).length > 0 && { config: { ...file.config, ...config } }),
  }
}

async function tasksInHelp(): Promise<string[]> {
  const { trainingTasks } = await import('../../../api/node.js')
  return (await trainingTasks()).flatMap(({ name, learns, records, learningRate }) => [
    `  ${colors.cyan(name)}  ${learns}${learningRate === undefined ? '' : ` (learning rate ${learningRate.toExponential()})`}`,
    ...records.map((record) => `    ${JSON.stringify(record)}`),
  ])
}

function narrate(progress: Progress, onStep: (elapsedMs: number) => void): TrainEvents {
  let evaluations = 0
  let best = Number.POSITIVE_INFINITY
  let parts = new Progress()
  const clear = () => {
    parts.clear()
    progress.clear()
  }
  return {
    task(name) {
      say(`Task: ${colors.bold(name)}`)
    },
    stage(stage) {
      clear()
      parts = new Progress()
      if (stage === 'encode') say('Reading the data …')
      if (stage === 'prepare') say('Building the training graph …')
    },
    progress({ stage, done, total }) {
      // If the output is not a terminal, a line for each stage is enough.
      if (!process.stderr.isTTY) return
      if (done === total) parts.clear()
      else parts.update(done, total, stage === 'evaluate' ? ' batches evaluated' : ' parts of the training graph')
    },
    evaluation({ step, loss, metrics }) {
      clear()
      evaluations++
      const when = evaluations === 1 && step === 0 ? 'before training' : `after step ${step}`
      const others = Object.entries(metrics).map(([name, value]) => `${name} ${value.toFixed(value < 10 ? 3 : 1)}`)
      const standing = loss < best ? '' : `, lowest so far ${best.toFixed(3)}`
      best = Math.min(best, loss)
      say(`Evaluation loss ${when}: ${colors.bold(loss.toFixed(3))} (${others.join(', ')})${standing}`)
    },
    sample({ step, samples }) {
      clear()
      for (const { prompt, text } of samples) {
        say(`${colors.dim(`step ${step}, ${printable(prompt)}:`)} ${printable(text)}`)
      }
    },
    step({ step, totalSteps, loss, rewards, tokensPerSecond, elapsedMs }) {
      onStep(elapsedMs)
      const measure = rewards === undefined ? `loss ${loss.toFixed(3)}` : `reward ${rewards.reward.toFixed(3)}`
      progress.update(step, totalSteps, `  ${measure}  ${thousands(tokensPerSecond)} tokens/s`)
    },
    note(message) {
      clear()
      note(message)
    },
    warning(message) {
      clear()
      warn(message)
    },
  }
}

async function passGate(
  { adapter, report }: TrainResult,
  options: Partial<TrainOptions> & Pick<TrainOptions, 'model'> & { folder: string; gate: string; json: boolean },
): Promise<number> {
  const { model, dtype, folder, gate, json, columns, maxLength, chatTemplate, chatTemplateArgs, taskOptions } = options
  if (report.interrupted) {
    say(`Stopped: ${colors.bold(folder)} did not change.`)
    return EXIT_INTERRUPTED
  }
  const node = await import('../../../api/node.js')
  const { models, records, differBy, lowerIsBetter } = await node.evaluate({
    ...{ model: model as Source, dtype, data: gate, task: report.task as TrainOptions['task'], taskOptions },
    ...{ columns, maxLength, chatTemplate, chatTemplateArgs, device: options.device, threads: options.threads },
    adapters: { before: await node.loadAdapter(folder), after: adapter },
    against: 'before',
  })
  const differences = models.find(({ name }) => name === 'after')!.differences!
  // A loss that belongs to a whole batch has no interval, but a metric of each record has.
  const metric = differences.loss.low === null ? (differBy ?? 'loss') : 'loss'
  const difference = differences[metric]
  const { value, low, high } = difference
  const isReplaced = difference.isNoWorse
  if (isReplaced) {
    await node.saveAdapter(adapter, folder, { overwrite: true }).catch(async (error) => {
      await rescue(Object.assign(error, { adapter }), folder)
      throw error
    })
  }
  const side = lowerIsBetter.includes(metric)
    ? 'down: the whole interval must be at or below 0'
    : 'up: the whole interval must be at or above 0'
  const interval = low === null || high === null ? '' : ` (95 %: ${low.toFixed(4)} to ${high.toFixed(4)})`
  const fact = `the ${metric} on ${records} held-out records changed by ${value.toFixed(4)}${interval}`
  say(
    isReplaced
      ? `${colors.bold(folder)} was replaced: ${fact}.`
      : `${colors.bold(folder)} stays as it was: ${fact}, and not surely ${side}.`,
  )
  if (json) printDocument({ ...report, gate: { records, difference, isReplaced }, out: folder })
  return 0
}
