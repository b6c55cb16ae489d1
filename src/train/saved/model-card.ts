// The README.md of an adapter folder: a model card with the metadata that the Hub reads
// (https://huggingface.co/docs/hub/model-cards#model-card-metadata), and the calls that run the adapter. Only runs that
// write a folder load this code.

import { isByteSource, isDirectory } from '../../files/data/row.js'
import { type DtypeChoice, dtypeOf } from '../../model/graph-file.js'
import { knownToolsIn } from '../../model/text/calls/known-tools.js'
import { baseNameOf } from '../about-run.js'
import type { TrainingData } from '../options.js'
import type { TrainReport } from '../report.js'
import type { Run, RunSources } from '../run.js'
import { isEvaluatedWhole } from '../tasks/task.js'

type CardReport = Pick<TrainReport, 'evalLoss' | 'evalMetrics' | 'evaluations' | 'steps'>

export function cardOf(report: CardReport, run: Run): string {
  return modelCard(partsOf(report, run))
}

export type CardParts = ReturnType<typeof partsOf>

function partsOf({ evalLoss, evalMetrics, evaluations, steps }: CardReport, run: Run) {
  const { options, around, task, open, adapter, settings } = run
  const { sources } = around
  const use = open.plainUse ?? task.use
  const { model, out, data, evalData, evalSplit, chatTemplateArgs } = options
  const { config, labels, problemType } = adapter
  const runFile = shellWord(`${out?.name}/run.json`)
  const { hubId, hubRevision } = model.directory
  const { baseModel: baseName } = baseNameOf(model)
  const { learningRate, schedule, batchSize, gradientAccumulation, loraPlusRatio, weightDecay } = settings
  const { rank, alpha, dropout, useRslora, useDora, seed } = config
  const names = dataNames(sources?.data, data)
  const opened = sources?.model ?? (hubId && hubRevision ? `${hubId}@${hubRevision}` : baseName)
  const { dtype, isDefault } = dtypeOf(Object.values(model.graphs), model.config)
  const isFile = opened.endsWith('.onnx')

  const isVectors = use.command?.[0] === 'embed'
  const metrics: Readonly<Record<string, number>> = evalLoss === null ? {} : { loss: evalLoss.after, ...evalMetrics }
  const before: typeof metrics = evalLoss === null ? {} : { loss: evalLoss.before, ...evaluations[0]?.metrics }
  const repeat = sources && !options.adapter ? `train --config ${runFile} --out again` : undefined
  const isEvaluated = sources?.evalData !== undefined && !task.writesTexts
  const shown: Readonly<Record<string, unknown>> = {
    task: task.name,
    steps,
    'learning rate': learningRate,
    schedule,
    'records in a step': batchSize * gradientAccumulation,
    rank,
    alpha,
    dropout,
    'LoRA+ ratio': loraPlusRatio,
    'weight decay': weightDecay === 0 ? undefined : weightDecay,
    rsLoRA: useRslora || undefined,
    DoRA: useDora || undefined,
    seed,
    ...Object.fromEntries(
      Object.entries(run.facts.writers).map(([writer, count]) => [`records that ${writer} wrote`, count]),
    ),
    'repeat with': repeat && `\`npx lowrank ${repeat}\``,
  }
  return {
    folder: out?.name ?? '',
    /** As lowrank opened it: an id on the Hub, a path or a URL. */
    base: hubId === undefined && !isFile ? baseName : opened.replace(/^hf:(?=[^/]+\/[^/]+$)/, ''),
    baseName,
    dtype: dtype as DtypeChoice,
    /** True if `base` without a dtype opens other graphs than those that were trained on. */
    namesDtype: !isDefault && !isFile,
    config,
    use,
    /** A line of the data that the calls are shown with; undefined takes that of `use`. */
    input: run.facts.prompt,
    isChat: adapter.chatTemplate !== undefined,
    /** The functions that prompts need not describe, with `toolsInAdapter`. */
    knownTools: knownToolsIn(adapter.chatTemplate ?? '')?.map((tool) => tool.name),
    data: names,
    evalData: evalData === undefined ? names : dataNames(sources?.evalData, evalData),
    /** The share of the data that was kept for evaluation, if the metrics are of such a share. */
    evalShare: evalData === undefined ? (evalSplit ?? heldOutShare(run)) : undefined,
    /** Options of `lowrank evaluate` that give the same numbers; undefined if no file has the records alone. */
    evaluate: isEvaluated ? evaluateOptions(run, [sources.evalData].flat()) : undefined,
    /** The command that trains and measures the same again; undefined if it needs what no file has. */
    repeat,
    metrics,
    before,
    settings: shown,
    labels,
    problemType,
    /** Options of the calls in transformers.js, in its own words. */
    callOptions: {
      ...(isVectors && {
        pooling: model.sentence.pooling.replace('lasttoken', 'last_token'),
        normalize: model.sentence.normalize,
      }),
      ...(adapter.chatTemplate && chatTemplateArgs && { tokenizer_encode_kwargs: chatTemplateArgs }),
    } as Readonly<Record<string, unknown>>,
  }
}

function evaluateOptions({ task, options, settings }: Run, data: readonly string[]): string[] {
  const { columns = {}, taskOptions = {}, chatTemplateArgs } = options
  const pairs = (values: object) => Object.entries(values).map(([name, value]) => `${name}=${value}`)
  const flag = (name: string, value: string | number | undefined) => {
    return value === undefined || value === '' ? [] : [`--${name} ${shellWord(String(value))}`]
  }
  return [
    ...data.flatMap((file) => flag('data', file)),
    ...flag('task', task.name),
    ...flag('task-options', pairs(taskOptions).join()),
    ...flag('columns', pairs(columns).join()),
    ...flag('max-length', isEvaluatedWhole(task) ? undefined : settings.maxLength),
    ...flag('batch-size', settings.batchSize === 8 ? undefined : settings.batchSize),
    ...flag('chat-template-args', chatTemplateArgs && JSON.stringify(chatTemplateArgs)),
  ]
}

/** Names of the data in a card: of data in memory, nothing is known. */
/** The share of the examples that the run held out itself. */
function heldOutShare({ examples, evalExamples }: Run): number | undefined {
  if (evalExamples === undefined) return undefined
  return Number((evalExamples.length / (evalExamples.length + examples.length)).toFixed(2))
}

function dataNames(sources: RunSources['data'] | undefined, data: TrainingData): string[] {
  if (sources !== undefined) return [sources].flat()
  const files = Array.isArray(data) ? data : [data]
  return files.flatMap((file) => (isByteSource(file) || isDirectory(file) ? [file.name] : []))
}

const ID = /^[\w-][\w.-]*\/[\w-][\w.-]*$/

export function modelCard(parts: CardParts): string {
  const { base, data, evalData, evalShare, evaluate, repeat, metrics, before, settings } = parts
  const measure = evaluate ? `evaluate ${baseFlags(parts)} ${evaluate.join(' ')}` : repeat
  const share = evalShare === undefined ? '' : `${evalShare} of the records in `
  const name = lastOf(parts.folder)
  const entries = Object.entries(metrics).filter(([, value]) => Number.isFinite(value))
  const figure = (value: number | undefined) => (Number.isFinite(value) ? Number(value!.toPrecision(5)) : '–')
  const numbers = entries.map(([metric, value]) => `| ${metric} | ${figure(before[metric])} | ${figure(value)} |`)
  const listed = Object.entries(settings).filter(([, value]) => value !== undefined)
  return [
    '---',
    ...metadata(parts, name, entries),
    '---',
    '',
    `# ${name}`,
    '',
    `A LoRA adapter of \`${base}\`, trained with lowrank on ${namesOf(data)}.`,
    '',
    ...(numbers.length === 0
      ? []
      : [
          `Measured on ${share}${namesOf(evalData)}${share === '' ? '' : ', which it did not see'}:`,
          '',
          '| metric | before training | after |',
          '| --- | --- | --- |',
          ...numbers,
          '',
          ...(measure === undefined ? [] : ['```sh', `npx lowrank ${measure}`, '```', '']),
        ]),
    ...toldTools(parts),
    ...usage(parts),
    '## Training',
    '',
    ...listed.map(([key, value]) => `- ${key}: ${typeof value === 'string' ? value : JSON.stringify(value)}`),
    '',
  ].join('\n')
}

function metadata(
  { baseName, use: { pipeline, tags: further = [] }, data, evalData }: CardParts,
  name: string,
  metrics: readonly (readonly [string, number])[],
): string[] {
  const isOnHub = ID.test(baseName)
  const text = JSON.stringify
  const tags = [...(isOnHub ? [`base_model:adapter:${baseName}`] : []), 'lora', 'lowrank', ...further]
  return [
    ...(isOnHub ? [`base_model: ${text(baseName)}`] : []),
    'library_name: peft',
    `pipeline_tag: ${pipeline}`,
    'tags:',
    ...tags.map((tag) => `- ${text(tag)}`),
    ...(metrics.length === 0
      ? []
      : [
          'metrics:',
          ...metrics.map(([metric]) => `- ${text(metric)}`),
          'model-index:',
          `- name: ${text(name)}`,
          '  results:',
          '  - task:',
          `      type: ${pipeline}`,
          '    dataset:',
          `      name: ${text(lastOf(evalData[0] ?? data[0] ?? name))}`,
          // The Hub reads an id of its own here, and data are files on this machine.
          '      type: unknown',
          '    metrics:',
          ...metrics.flatMap(([metric, value]) => [`    - type: ${text(metric)}`, `      value: ${value}`]),
        ]),
  ]
}

/** The base and the adapter, as commands take them. */
function baseFlags({ base, folder, namesDtype, dtype }: CardParts): string {
  const form = namesDtype && typeof dtype === 'string' ? ` --dtype ${shellWord(dtype)}` : ''
  return `--model ${shellWord(base)}${form} --adapter ${shellWord(folder)}`
}

function usage(parts: CardParts): string[] {
  const { base, baseName, folder, config, labels, problemType, callOptions } = parts
  const { pipeline, autoClass, command, onlyMerged = false } = parts.use
  if (command === undefined) return []
  const [verb, flag, input = command[2]] = [command[0], command[1], parts.input]
  const { revision } = config.peftFields
  const text = (value: string) => `'${value.replaceAll('\\', '\\\\').replaceAll("'", "\\'")}'`
  // Pipelines put chats into the template, and continue texts as they are.
  const given = parts.isChat ? `[{ role: 'user', content: ${text(input)} }]` : text(input)
  const literal = (value: unknown) => (typeof value === 'string' ? text(value) : JSON.stringify(value))
  const options = Object.entries(callOptions).map(([name, value]) => `${name}: ${literal(value)}`)
  const dtype = literal(parts.dtype)
  const flagOf = (name: string, value?: string) => (value === undefined ? '' : ` --${name} ${shellWord(value)}`)
  const form = parts.namesDtype && typeof parts.dtype === 'string' ? flagOf('dtype', parts.dtype) : ''
  const args = flagOf('chat-template-args', JSON.stringify(callOptions.tokenizer_encode_kwargs))
  const isScore = problemType === 'regression'
  const problem = problemType === undefined ? '' : `, problem_type=${JSON.stringify(problemType)}`
  const names = (labels ?? []).map((label, id) => `${id}: ${JSON.stringify(label)}`).join(', ')
  const head =
    labels === undefined ? '' : `, num_labels=${labels.length}${problem}${isScore ? '' : `, id2label={${names}}`}`
  return [
    '## Use',
    '',
    'With lowrank, from the command line:',
    '',
    '```sh',
    `npx lowrank ${verb} ${baseFlags(parts)} ${flag} ${shellText(input)}${args}`,
    '```',
    '',
    ...(onlyMerged
      ? []
      : [
          'With transformers.js, beside other adapters of the same model:',
          '',
          '```js',
          "import { pipelineWithAdapters } from 'lowrank/transformers'",
          '',
          `const run = await pipelineWithAdapters(${text(pipeline)}, ${text(base)}, { ${parts.namesDtype ? `dtype: ${dtype}, ` : ''}adapters: { mine: ${text(folder)} } })`,
          `console.log(await run(${given}, { ${["adapter: 'mine'", ...options].join(', ')} }))`,
          '```',
          '',
        ]),
    'With transformers.js alone, after a merge:',
    '',
    '```sh',
    `npx lowrank merge --base ${shellWord(base)}${form} --adapter ${shellWord(folder)} --out merged --format onnx`,
    '```',
    '',
    '```js',
    `import { ${isScore ? 'AutoModelForSequenceClassification, AutoTokenizer, env' : 'env, pipeline'} } from '@huggingface/transformers'`,
    '',
    "env.localModelPath = '.'",
    ...(isScore
      ? [
          "const tokenizer = await AutoTokenizer.from_pretrained('merged')",
          `const model = await AutoModelForSequenceClassification.from_pretrained('merged', { dtype: ${dtype} })`,
          "console.log((await model(await tokenizer('The'))).logits)",
        ]
      : [
          `const run = await pipeline(${text(pipeline)}, 'merged', { dtype: ${dtype} })`,
          `console.log(await run(${[given, ...(options.length > 0 ? [`{ ${options.join(', ')} }`] : [])].join(', ')}))`,
        ]),
    '```',
    '',
    'With PEFT, in Python:',
    '',
    '```python',
    'from peft import PeftModel',
    `from transformers import ${autoClass}`,
    '',
    `base = ${autoClass}.from_pretrained(${JSON.stringify(baseName)}${typeof revision === 'string' ? `, revision=${JSON.stringify(revision)}` : ''}${head})`,
    `model = PeftModel.from_pretrained(base, ${JSON.stringify(folder)})`,
    '```',
    '',
  ]
}

function toldTools({ knownTools }: CardParts): string[] {
  if (knownTools === undefined) return []
  return [
    '## Functions',
    '',
    `It calls ${knownTools.map((name) => `\`${name}\``).join(', ')}, and was trained without their declarations in the prompt. \`chat_template.jinja\` has the list. lowrank checks the \`tools\` of a request against it, and leaves them out of the prompt. With other servers, send no \`tools\`.`,
    '',
  ]
}

function namesOf(data: readonly string[]): string {
  return data.length === 0 ? 'records in memory' : data.map((file) => `\`${lastOf(file)}\``).join(', ')
}

function lastOf(path: string): string {
  const parts = path.replace(/[/\\]+$/, '').split(/[/\\]/)
  return parts.at(-1) || path
}

/** In double quotes, which all shells know, where nothing in it means something to them. */
function shellText(text: string): string {
  return /^[\p{L}\p{N} .,:;?'()-]*$/u.test(text) ? `"${text}"` : `'${text.replaceAll("'", "'\\''")}'`
}

function shellWord(word: string): string {
  return /^[\w@%+=:,./-]+$/.test(word) ? word : `'${word.replaceAll("'", "'\\''")}'`
}
