// lowrank train: a model folder and records → an adapter folder that PEFT reads too.

import { CHOICES, DEFAULTS, type TrainEvents, type TrainOptions } from '../index.js'
import { DATA_OPTIONS, readChatTemplate } from './data-options.js'
import { EXIT_INTERRUPTED, interruptible } from './interrupt.js'
import {
  choice,
  decimal,
  defineCommand,
  flagOf,
  integer,
  type Option,
  readNumber,
  text,
  toggle,
  UsageError,
} from './options.js'
import { printPreview } from './preview.js'
import { inRunFile, readRunFile } from './run-file.js'
import { DEVICE, dtype, MODEL, RUNS } from './sources.js'
import { colors, duration, Progress, printDocument, say, thousands, warn } from './terminal.js'

/** `all-linear`, `default`, or names divided by commas. */
function targetModules(): Option<string | string[]> {
  return {
    placeholder: 'all-linear|default|a,b',
    about:
      'modules to adapt: all linear layers, PEFT’s default modules for this type of model, or names such as q_proj,v_proj',
    fallback: DEFAULTS.train.config.targetModules,
    read(occurrences) {
      const value = occurrences.at(-1)?.value
      if (value === undefined || value === 'all-linear') return DEFAULTS.train.config.targetModules
      if (value === 'default') return value
      const names = value.split(',').map((name) => name.trim())
      if (!names.includes('')) return names
      throw new UsageError(`--target-modules takes all-linear, default, or names such as q_proj,v_proj; got '${value}'`)
    },
  }
}

/** Names divided by commas. */
function names(about: string): Option<string[] | undefined> {
  return {
    placeholder: 'a,b',
    about,
    read(occurrences) {
      const last = occurrences.at(-1)
      if (last === undefined) return undefined
      const found = last.value.split(',').map((name) => name.trim())
      if (!found.includes('')) return found
      throw new UsageError(`${last.flag} takes names divided by commas; got '${last.value}'`)
    },
  }
}

/** Tokens divided by commas: texts, and ids where there are digits alone. */
function tokens(about: string): Option<(string | number)[] | undefined> {
  const list = names(about)
  return {
    ...list,
    placeholder: 'a,N,…',
    read: (occurrences) => list.read(occurrences)?.map((token) => (/^\d+$/.test(token) ? Number(token) : token)),
  }
}

/** Numbers by module. What they may be is checked where they are used. */
function pattern(about: string): Option<Record<string, number> | undefined> {
  return {
    placeholder: 'a=N,…',
    about,
    read(occurrences) {
      const last = occurrences.at(-1)
      if (last === undefined) return undefined
      const { flag, value } = last
      const pairs = value.split(',').map((pair) => {
        const at = pair.lastIndexOf('=')
        return [pair.slice(0, Math.max(0, at)).trim(), readNumber({ flag, value: pair.slice(at + 1).trim() })] as const
      })
      if (pairs.every(([name]) => name !== '')) return Object.fromEntries(pairs)
      throw new UsageError(`${flag} takes modules with numbers, such as q_proj=16,v_proj=4; got '${value}'`)
    },
  }
}

/** Settings of the task's own: numbers where they look like numbers. */
function taskOptions(): Option<Record<string, unknown> | undefined> {
  return {
    placeholder: 'a=b,…',
    about: 'settings of the task, such as temperature=0.05 of embedding or beta=0.1 of dpo',
    read(occurrences) {
      const value = occurrences.at(-1)?.value
      if (value === undefined) return undefined
      const pairs = value.split(',').map((pair) => pair.split('=').map((part) => part.trim()))
      if (pairs.every((pair) => pair.length === 2 && !pair.includes(''))) {
        return Object.fromEntries(pairs.map(([name, own]) => [name, meantBy(own)]))
      }
      throw new UsageError(`--task-options takes settings such as temperature=0.05; got '${value}'`)
    },
  }
}

function meantBy(text: string): unknown {
  if (text === 'true' || text === 'false') return text === 'true'
  const number = Number(text)
  return Number.isNaN(number) ? text : number
}

export const train = defineCommand({
  name: 'train',
  summary: 'fine-tune an adapter on your texts or chats',
  about: [
    'Trains a LoRA adapter: a small set of new weights that learns from your data. The model itself does not change.',
    'Records are {"text": "…"}, {"prompt": "…", "completion": "…"}, {"question": "…", "answer": "…"} or chats: {"messages": […]}.',
    'From {"text"} records, the adapter learns the whole text. From the others, it learns the completion, the answer, or the messages of the assistant.',
    'With another --task, the records have other fields: see Tasks below, and docs/tasks.md.',
    '--preview 3 shows the tokens of three examples, and which of these tokens it learns.',
  ].join('\n'),
  more: async () => ({ Tasks: await tasksInHelp() }),
  examples: [
    'lowrank train --model models/union-3m --data models/data/scripture.jsonl --out out/scripture --learning-rate 5e-3',
    'lowrank train --model models/union-3m --data models/data/scripture.jsonl --out out/scripture-2 --save-every 20 --overwrite',
  ],
  options: {
    model: text(MODEL, `${RUNS}; required unless --config names it`),
    dtype: dtype(),
    ...DATA_OPTIONS,
    data: {
      ...DATA_OPTIONS.data,
      isRequired: false,
      about: `${DATA_OPTIONS.data.about}; required unless --config names it`,
    },
    out: text('DIR', 'new folder for the adapter; required unless --preview is given'),
    tensorboard: text('DIR', 'folder for an event file of TensorBoard, with the numbers of each step and evaluation'),
    config: text(
      'FILE',
      'YAML or JSON file with the options of the run. Names are those in code, such as maxSteps. Options of the command line replace those of the file. run.json in the folder of an adapter is such a file',
    ),
    task: choice(
      CHOICES.train.task,
      'what the model learns: see Tasks below; default: causal-lm, or seq2seq for an encoder-decoder such as T5',
    ),
    taskOptions: taskOptions(),
    preset: choice(
      CHOICES.train.preset,
      'whose defaults to use where no option is given: peft takes those of PEFT and transformers, such as alpha 8, learning rate 5e-5 and 3 epochs; default: those below',
    ),
    rank: integer('rank of the added matrices: the size of the adapter', { fallback: DEFAULTS.train.config.rank }),
    alpha: decimal('strength of the adapter: its change is scaled by alpha / rank', DEFAULTS.train.config.alpha),
    dropout: decimal(
      'part of the adapter’s inputs that is set to 0 during training, such as 0.1',
      DEFAULTS.train.config.dropout,
    ),
    targetModules: targetModules(),
    useRslora: toggle('rsLoRA: scale by alpha / √rank, so that high ranks learn as fast as low ones'),
    useDora: toggle(
      'DoRA: also train the length of each row of a weight, apart from the direction of the row; each step is slower',
    ),
    rankPattern: pattern('other ranks for some modules, as NAME=RANK, such as q_proj=16,v_proj=4'),
    alphaPattern: pattern('other alphas for some modules, as NAME=ALPHA'),
    bias: choice(
      CHOICES.train.bias,
      'biases of the model to train too: none, all, or those of the adapted modules',
      'none',
    ),
    modulesToSave: names('modules to train and save as a whole, by the ends of their names, such as norm,lm_head'),
    trainedTokens: tokens(
      'tokens whose rows of the embedding are trained too, such as special tokens: texts, or ids, such as "<tool>,32000"',
    ),
    init: choice(CHOICES.train.init, 'how the random initial values of A and B are chosen', DEFAULTS.train.config.init),
    epochs: integer('passes over the data', { fallback: DEFAULTS.train.epochs }),
    maxSteps: integer('number of steps, instead of --epochs'),
    batchSize: integer('records in a batch', { fallback: DEFAULTS.train.batchSize }),
    maxLength: integer('longer records are cut to N tokens; default: the model’s context'),
    learningRate: decimal(
      'highest learning rate',
      `${DEFAULTS.train.learningRate.toExponential()}, or that of the task`,
    ),
    schedule: choice(
      CHOICES.train.schedule,
      'how the learning rate changes after its highest point',
      DEFAULTS.train.schedule,
    ),
    warmupRatio: decimal(
      'part of the steps at the start in which the learning rate rises to its highest value, such as 0.1',
      DEFAULTS.train.warmupRatio,
    ),
    loraPlusRatio: decimal(
      `LoRA+: how many times as fast B learns as A; default: ${DEFAULTS.train.loraPlusRatio} with the default --learning-rate, 1 with another one`,
    ),
    loraFa: toggle('LoRA-FA: A stays as it starts, and only B is trained; each step is faster'),
    weightDecay: decimal('weight decay of the optimizer, AdamW', DEFAULTS.train.weightDecay),
    maxGradNorm: decimal(
      'largest norm of the gradient. Larger gradients are scaled down to this norm. 0 turns this off',
      DEFAULTS.train.maxGradNorm,
    ),
    gradientAccumulation: integer('batches in a step', { fallback: DEFAULTS.train.gradientAccumulation }),
    seed: integer('the same seed, data and machine give the same adapter', {
      fallback: DEFAULTS.train.config.seed,
      least: 0,
    }),
    device: DEVICE,
    threads: integer('processor threads to use; default: ONNX Runtime’s choice'),
    lowMemory: toggle('use less memory; a little slower'),
    evalEvery: integer('also measure the evaluation loss after every N steps; needs --eval-data or --eval-split'),
    keep: choice(
      CHOICES.train.keep,
      'weights to save: those of the last step, or those of the best evaluation; best needs --eval-data or --eval-split',
      DEFAULTS.train.keep,
    ),
    bestMetric: text(
      'NAME',
      'metric that decides which evaluation is best: loss, or another one, such as accuracy',
      DEFAULTS.train.bestMetric,
    ),
    earlyStopping: integer('stop after N evaluations in a row without a better one; needs --eval-data or --eval-split'),
    packing: toggle('put several short records into one row of --max-length tokens (default 512); faster'),
    newHead: toggle(
      'start with a new head for the labels of the data, also where the model has a head that fits; for the tasks with labels',
    ),
    saveEvery: integer('save every N steps, so that --resume can continue after a crash'),
    resume: toggle('continue the unfinished run in --out'),
    overwrite: toggle('replace an earlier run of lowrank in --out'),
    preview: integer('show the tokens of the first N examples, and which of them count for the loss; trains nothing'),
    json: toggle('print one JSON document on stdout'),
  },
  async run(values, { occurrences }) {
    const { preview, json, config: file, ...own } = values
    const given = new Set(Object.keys(own).filter((key) => occurrences.some(({ flag }) => flag === flagOf(key))))
    const fromFile = file === undefined ? {} : await readRunFile(file)
    const options = await withFile(fromFile, own, given)
    const { model, data, out, task } = options
    // A misspelled name in the file is a likely reason, so the message lists the names that it has.
    const inSight = file === undefined ? '' : `; ${file} has ${Object.keys(fromFile).join(', ') || 'no options'}`
    if (model === undefined) throw new UsageError(`--model ${MODEL} is missing${inSight}`)
    if (data === undefined) throw new UsageError(`--data FILE|DIR is missing${inSight}`)
    if (options.resume && options.overwrite) throw new UsageError('--resume and --overwrite cannot be used together')
    const node = await import('../node.js')
    const inFile = (error: unknown): never => {
      throw file === undefined ? error : inRunFile(error, file, given, fromFile)
    }
    if (preview !== undefined) {
      const { columns, maxLength, chatTemplate, chatTemplateArgs } = options
      const about = { model, task, data, columns, maxLength, chatTemplate, chatTemplateArgs, count: preview }
      const examples = await node.previewData(about).catch(inFile)
      if (json) printDocument({ examples })
      else printPreview(examples)
      return 0
    }
    if (typeof out !== 'string') throw new UsageError('--out DIR is missing')
    const progress = new Progress()
    const pace: StepPace = { stepMs: undefined }
    const result = await interruptible(
      () => finishing(pace),
      (signal) => node.train({ ...options, model, data, signal, on: narrate(progress, pace) }),
    )
      .catch(stoppedLoading)
      .catch(inFile)
      .finally(() => progress.end())
    if (result === undefined) return EXIT_INTERRUPTED
    const { report } = result
    const { interrupted } = report
    const isChat = result.adapter.chatTemplate !== undefined
    const form = options.dtype === undefined ? '' : ` --dtype ${options.dtype}`
    if (interrupted && options.overwrite && report.steps === 0) {
      say(`Stopped before the first step: ${colors.bold(out)} did not change.`)
      if (json) printDocument({ ...report, out })
      return EXIT_INTERRUPTED
    }
    const { stoppedEarly, keptStep } = report
    if (stoppedEarly) say(`Ended early, after ${options.earlyStopping} evaluations in a row that were not better.`)
    if (!interrupted && keptStep < report.steps) say(`Kept the weights of step ${keptStep}, whose evaluation was best.`)
    say(
      `${interrupted ? 'Stopped' : 'Done'} after ${report.steps} ${report.steps === 1 ? 'step' : 'steps'} in ${duration(report.seconds * 1000)}: ` +
        `${thousands(report.trainableParams)} parameters in ${colors.bold(out)}`,
    )
    if (interrupted)
      say(`To continue, run the same command with --resume${options.overwrite ? ' in place of --overwrite' : ''}.`)
    else {
      const [command, option, input] = await triedWith(node, task)
      const words = `${option} "${isChat ? 'Who are you?' : input}"`
      say(`Try it: npx lowrank ${command} --model ${quote(String(model))}${form} --adapter ${quote(out)} ${words}`)
    }
    if (json) printDocument({ ...report, out })
    return interrupted ? EXIT_INTERRUPTED : 0
  },
})

/** Settings of the new adapter, which are options of their own here. */
const CONFIG_OPTIONS = [
  'rank',
  'alpha',
  'dropout',
  'targetModules',
  'useRslora',
  'useDora',
  'rankPattern',
  'alphaPattern',
  'bias',
  'modulesToSave',
  'init',
  'seed',
] as const

/** The options of a file, replaced by those that were given. */
async function withFile(
  file: Partial<TrainOptions>,
  values: Readonly<Record<string, unknown>>,
  given: ReadonlySet<string>,
): Promise<Partial<TrainOptions>> {
  const isConfig = (key: string) => (CONFIG_OPTIONS as readonly string[]).includes(key)
  const pick = (keys: readonly string[]) => Object.fromEntries(keys.map((key) => [key, values[key]]))
  const config = pick(CONFIG_OPTIONS.filter((key) => given.has(key)))
  const template = given.has('chatTemplate') && (await readChatTemplate(values.chatTemplate as string))
  return {
    ...file,
    ...pick([...given].filter((key) => !isConfig(key))),
    ...(template && { chatTemplate: template }),
    ...(Object.keys(config).length > 0 && { config: { ...file.config, ...config } }),
  }
}

/** The command that runs the adapters of a task, its option for the input, and an input. */
async function triedWith({ trainingTasks }: typeof import('../node.js'), task: string | undefined) {
  const tasks = await trainingTasks()
  const { use } = tasks.find(({ name }) => name === task) ?? tasks[0]
  return use.command ?? tasks[0].use.command!
}

/** A line for each task in the help: what it learns, its records, and its learning rate where it has one of its own. */
async function tasksInHelp(): Promise<string[]> {
  const { trainingTasks } = await import('../node.js')
  return (await trainingTasks()).flatMap(({ name, learns, records, learningRate }) => [
    `  ${colors.cyan(name)}  ${learns}${learningRate === undefined ? '' : ` (learning rate ${learningRate.toExponential()})`}`,
    ...records.map((record) => `    ${JSON.stringify(record)}`),
  ])
}

/** Ctrl-C while the model came: what has come is kept. */
function stoppedLoading(error: unknown): undefined {
  if (!(error instanceof DOMException && error.name === 'AbortError')) throw error
  say('Stopped before training. Run the same command again: the download continues.')
  return undefined
}

/** How long steps take. */
interface StepPace {
  stepMs: number | undefined
}

/** What follows the first Ctrl-C. A step cannot be interrupted, so people are told how long it may take. */
function finishing({ stepMs }: StepPace): string {
  return `Finishing the step${stepMs === undefined ? '' : `, which takes about ${Math.ceil(stepMs / 1000)} s`}, then saving.`
}

/** Tells people what a run does. */
function narrate(progress: Progress, pace: StepPace): TrainEvents {
  let evaluations = 0
  let parts = new Progress()
  const clear = () => {
    parts.clear()
    progress.clear()
  }
  return {
    stage(stage) {
      clear()
      parts = new Progress()
      if (stage === 'encode') say('Reading the data …')
      if (stage === 'prepare') say('Building the training graph …')
    },
    progress({ stage, done, total }) {
      // Where nobody watches, a line for each stage is enough.
      if (!process.stderr.isTTY) return
      if (done === total) parts.clear()
      else parts.update(done, total, stage === 'evaluate' ? ' batches evaluated' : ' parts of the training graph')
    },
    evaluation({ step, loss, metrics }) {
      clear()
      evaluations++
      const when = evaluations === 1 && step === 0 ? 'before training' : `after step ${step}`
      const others = Object.entries(metrics).map(([name, value]) => `${name} ${value.toFixed(value < 10 ? 3 : 1)}`)
      say(`Evaluation loss ${when}: ${colors.bold(loss.toFixed(3))} (${others.join(', ')})`)
    },
    step({ step, totalSteps, loss, tokensPerSecond, elapsedMs }) {
      pace.stepMs = elapsedMs
      progress.update(step, totalSteps, `  loss ${loss.toFixed(3)}  ${thousands(tokensPerSecond)} tokens/s`)
    },
    warning(message) {
      clear()
      warn(message)
    },
  }
}

function quote(word: string): string {
  return /^[\w@%+=:,./-]+$/.test(word) ? word : `'${word.replaceAll("'", "'\\''")}'`
}
