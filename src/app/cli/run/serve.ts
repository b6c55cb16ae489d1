// lowrank serve: OpenAI's HTTP routes over one model and many adapters.

import { once } from 'node:events'
import { constants } from 'node:os'
import { basename } from 'node:path'
import type { LoraAdapter, OpenSessionOptions } from '../../../api/index.js'
import { requireChatTemplate } from '../../../api/model.js'
import { readChatTemplate, readTextFile } from '../../../api/node/command-line.js'
import { closing } from '../../../core/base/bytes.js'
import { isObject, jsonIn } from '../../../core/base/options.js'
import type { AliasTarget, ApiKey, RequestEntry, ResolveAdapter } from '../../../serve/node/entry.js'
import { checkEarly } from '../early.js'
import { flags } from '../flags.js'
import {
  type Command,
  choice,
  defineCommand,
  flagOf,
  MODEL,
  type Occurrence,
  type Options,
  parseCommand,
  RUNS,
  readNumber,
  repeated,
  single,
  text,
  toggle,
  UsageError,
  type Values,
} from '../options.js'
import { interruptedBy, interruptible } from '../show/interrupt.js'
import { showLoad } from '../show/load.js'
import { colors, print, printable, say, warn } from '../show/terminal.js'
import { readOptions } from './text-files.js'
import { baseOfAdapter } from './with-session.js'

const KEY = '[NAME=]KEY'
const LIMITS = ['maxAdapters', 'maxRunning', 'maxQueue', 'maxTokens', 'timeoutSeconds'] as const
const LISTENING = ['host', 'port', 'metricsPort', 'drainSeconds'] as const
const OF_SESSION = ['device', 'threads', 'yieldProcessors', 'prefixCache'] as const
const OF_TRAINING = [
  ...(['graderModels', 'termsRead', 'retentionDays', 'maxFileBytes', 'maxOwnerBytes', 'maxJobs'] as const),
  ...(['maxStored', 'maxStoredBytes', 'storeRequired', 'noBackup'] as const),
] as const

const OPTIONS = {
  model: text(MODEL, `${RUNS}; default: the base of the first adapter`),
  config: text('FILE', 'YAML or JSON with values of these options, by their names'),
  ...flags('LoadModelOptions', 'dtype'),
  adapter: repeated('[NAME=]SOURCE', 'an adapter, and the name by which requests choose it. Default: its last part'),
  allowLoading: repeated(
    'FOLDER|hub:ORG/*',
    'load adapters of this folder by their names, or of these repositories on /v1/load_lora_adapter alone',
  ),
  train: text('FOLDER', 'answer OpenAI’s routes for files and fine-tuning; needs --admin-key'),
  trainWhen: flags('TrainingOptions', 'when').when,
  ...flags('TrainingOptions', ...OF_TRAINING),
  moved: text('DIR', 'answer under the old names of the jobs that lowrank openai move has moved in this folder'),
  alias: repeated(
    'NAME=MODEL',
    'a further name of a model; in --config, its value may be { model, upstream: { url, model, when } }',
  ),
  upstream: text(
    'URL',
    'with --moved: the server of the old models, up to /v1, asked first until their last day; LOWRANK_UPSTREAM_KEY is its key',
  ),
  ...flags('HandlerOptions', 'fallback', 'defaultModel'),
  defaultModelFor: repeated(
    'PATTERN',
    'names that --default-model answers. Default: gpt-*, o[0-9]*, chatgpt-*, claude-*, text-embedding-*',
  ),
  record: toggle('with --moved and --upstream: keep what the old models answer in the folder'),
  compare: single(
    'SHARE',
    'with --moved and --upstream: our models answer, and for this share of the chats the old one is asked too',
    readNumber,
  ),
  budget: single('DOLLARS', 'with --compare: the most that the folder may ever cost', readNumber),
  maxDownload: single('BYTES', 'the most bytes of an adapter from the Hub. Default: 1 GiB', readNumber),
  allow: repeated('KIND', 'parts of adapters that come later, beside lora: dora, biases, embeddings or heads'),
  servedModelName: repeated('NAME', 'a name of the base, such as gpt-4o-mini. Default: the model’s name'),
  chatTemplate: text('FILE', 'a chat template (Jinja), in the place of the model’s'),
  ...flags('HandlerOptions', ...LIMITS),
  ...flags('ListenOptions', ...LISTENING),
  apiKey: repeated(KEY, 'a key that callers must send, and its name in the log; also LOWRANK_API_KEY'),
  adminKey: repeated(KEY, 'a key that may call every route, and loads adapters; also LOWRANK_ADMIN_KEY'),
  keyFile: text('FILE', 'keys, one on each line: [NAME=]KEY, then priority=N or admin'),
  origin: repeated('ORIGIN', 'a page that may call from a browser, such as https://example.com'),
  allowedHost: repeated('NAME', 'a name by which callers may reach the server. Default: any, and on localhost its own'),
  ...flags('OpenSessionOptions', ...OF_SESSION),
  accuracyLevel: choice(['0', '4'], 'of products by quantized weights; 4 is faster and less exact'),
  log: choice(['json', 'text', 'off'], 'a line on stdout for each request. Default: text, and off at a terminal'),
  noPage: toggle('do not answer / with the page to talk to the model'),
  quiet: toggle('print the address alone'),
}

export const serve: Command = defineCommand({
  name: 'serve',
  summary: 'answer HTTP requests in OpenAI’s form, with an adapter for each',
  about: [
    'Opens the model once. The “model” of a request chooses the base or an adapter by its name.',
    'A browser that opens the address gets a page to talk to the model.',
    'Routes: /v1/models, /v1/chat/completions, /v1/completions, /v1/responses, /v1/embeddings, /classify, /health, /metrics.',
    'Ctrl-C or SIGTERM: answers what has begun, refuses what is new, and stops with 0; cut off, with 130 or 143.',
  ].join('\n'),
  examples: ['lowrank serve models/union-3m --adapter peft=tests/golden/peft/f32 --port 0'],
  subject: ['model'],
  sections: {
    Options: ['model', 'adapter', 'host', 'port', 'apiKey', 'adminKey', 'config'],
    'Model and adapters': [
      ...(['dtype', 'servedModelName', 'chatTemplate', 'allowLoading', 'maxDownload', 'allow', 'maxAdapters'] as const),
    ],
    'In the place of other models': [
      ...(['moved', 'alias', 'upstream', 'fallback', 'defaultModel', 'defaultModelFor'] as const),
      ...(['record', 'compare', 'budget'] as const),
    ],
    'Training jobs': ['train', 'trainWhen', ...OF_TRAINING],
    'Callers and limits': [
      ...(['keyFile', 'origin', 'allowedHost', 'maxRunning', 'maxQueue', 'maxTokens', 'timeoutSeconds'] as const),
      'drainSeconds',
    ],
    'Device and output': [
      ...(['device', 'threads', 'yieldProcessors', 'prefixCache', 'accuracyLevel', 'metricsPort'] as const),
      ...(['log', 'noPage', 'quiet'] as const),
    ],
  },
  options: OPTIONS,
  async run(given, { occurrences }) {
    const values = given.config === undefined ? given : await withConfig(given.config, occurrences)
    const { model: named, dtype, adapter, allow, apiKey, adminKey, keyFile, origin, allowedHost, host } = values
    const { noPage, quiet, accuracyLevel: level, chatTemplate, servedModelName } = values
    const { createHandler, listen, trainingIn } = await import('../../../serve/node/entry.js')
    const { loadAdapter, loadModel } = await import('../../../api/node.js')
    const moved = await movedIn(values)
    const sources = [...adapter.map(adapterOf), ...Object.entries(moved?.adapters ?? {})]
    const twice = sources.find(([name], i) => sources.findIndex(([known]) => known === name) < i)
    if (twice !== undefined) throw new UsageError(`--adapter: two are called ${twice[0]}: write NAME=SOURCE`)
    // The handler refuses unknown ones.
    const kinds = ['lora', ...allow.flatMap((names) => names.split(','))] as OpenSessionOptions['allow']
    const apiKeys = await keysOf(apiKey, adminKey, keyFile)
    const isLocal = ['127.0.0.1', 'localhost', '::1', undefined].includes(host)
    const local = isLocal ? ['127.0.0.1', 'localhost', '[::1]'] : []
    const hosts = isLocal || allowedHost.length > 0 ? [...local, ...allowedHost] : undefined
    const { train } = values
    if (train !== undefined && !apiKeys.some(({ isAdmin }) => isAdmin))
      throw new UsageError('--train needs --admin-key KEY')
    if (train !== undefined && hosts === undefined)
      throw new UsageError('--train needs --allowed-host NAME with this --host')
    const training =
      train === undefined
        ? undefined
        : trainingIn(train, { dtype, when: values.trainWhen, ...picked(values, OF_TRAINING) })
    const log = values.log ?? (process.stdout.isTTY ? 'off' : 'text')
    const aliases = { ...moved?.aliases, ...Object.fromEntries(values.alias.map(aliasOf)) }
    if (named === undefined && sources.length === 0) throw new UsageError(`--model ${MODEL} is missing`)
    const resolveAdapter = await resolverOf(values.allowLoading, values.maxDownload)
    const template = await readChatTemplate(chatTemplate)
    const adapters: Record<string, LoraAdapter> = {}
    const load = async () => {
      for (const [name, source] of sources) adapters[name] = await loadAdapter(source)
      const [[name, first]] = sources.length > 0 ? sources : [['', '']]
      return loadModel(named ?? moved?.base ?? (await baseOfAdapter(first, adapters[name])), { dtype })
    }
    // Nothing is loaded for a port that cannot be used.
    let begin = () => {}
    const isListening = new Promise<void>((resolve) => {
      begin = resolve
    })
    const loading = isListening.then(load)
    const opening = loading.then((model) =>
      createHandler({
        ...{ model, adapters, resolveAdapter, hosts, training, ...picked(values, LIMITS) },
        ...{
          aliases,
          record: moved?.record,
          fallback: values.fallback,
          defaultModel: values.defaultModel,
          ...(values.defaultModelFor.length > 0 && { defaultModelFor: values.defaultModelFor }),
          upstreamKey: process.env.LOWRANK_UPSTREAM_KEY || undefined,
        },
        session: {
          ...picked(values, OF_SESSION),
          accuracyLevel: level === undefined ? undefined : (Number(level) as 0 | 4),
          maxBatch: values.maxRunning,
          on: { warning: warn },
          allow: (resolveAdapter ?? training) && kinds,
        },
        ...(servedModelName.length > 0 && { servedModelName }),
        chatTemplate: template,
        apiKeys: apiKeys.length > 0 ? apiKeys : undefined,
        origins: origin,
        page: !noPage,
        on: {
          ...(log !== 'off' && {
            request: (entry: RequestEntry) => print(log === 'json' ? JSON.stringify(entry) : lineOf(entry)),
          }),
          error: (error) => warn(error instanceof Error ? (error.stack ?? error.message) : String(error)),
        },
      }),
    )
    // Whoever waits for the port hears of a failure below.
    opening.catch(() => {})
    const { url, metricsUrl, close } = await listen(opening, picked(values, LISTENING))
    begin()
    try {
      return await closing(await loading, async (model) => {
        const isChat =
          template !== undefined || (await requireChatTemplate(model.directory).catch(() => false)) !== false
        const handler = await opening
        // From here on a signal ends nothing at once: whoever knows the address may have asked something.
        const isWhole = await interruptible('Answering what has begun.', async (signal) => {
          say(`${colors.bold(url)} serves ${printable([handler.base, ...Object.keys(adapters)].join(', '))}`)
          if (metricsUrl !== undefined) say(`${metricsUrl}/metrics needs no key`)
          if (!quiet) say(exampleOf(url, Object.keys(adapters)[0] ?? handler.base, apiKeys.length > 0, isChat))
          if (!isLocal && apiKeys.length === 0)
            warn('Everybody who reaches this address can use it: give --api-key KEY')
          const live = quiet ? undefined : showLoad(() => handler.metrics())
          if (!signal.aborted) await once(signal, 'abort')
          live?.()
          return close()
        })
        await handler.close()
        if (isWhole) return 0
        warn('Answers were cut off: they took longer than --drain-seconds')
        return 128 + constants.signals[interruptedBy()!]
      })
    } finally {
      await close()
      await moved?.close()
    }
  },
})

type ServeValues = Values<typeof OPTIONS>

function picked<Name extends keyof ServeValues>(values: ServeValues, names: readonly Name[]) {
  return Object.fromEntries(names.map((name) => [name, values[name]])) as Pick<ServeValues, Name>
}

/** Values of a file, unless the command line has the option too. */
async function withConfig(file: string, occurrences: readonly Occurrence[]): Promise<ServeValues> {
  const given = new Set(occurrences.map(({ flag }) => flag))
  const written = ({ flag, value }: Occurrence) => (value === '' ? flag : `${flag}=${value}`)
  const inFile = Object.entries(
    await readOptions(file, 'not the options of a server', 'names with values, such as model, adapter and port'),
  ).flatMap(([name, value]) => {
    const flag = flagOf(name)
    const named = isObject(value)
    const pairs = named
      ? Object.entries(value).map(([key, item]) => `${key}=${isObject(item) ? JSON.stringify(item) : item}`)
      : []
    const isRepeatable = (OPTIONS as Options)[name]?.isRepeatable
    const list = !named ? [value].flat() : isRepeatable ? pairs : [pairs.join(',')]
    return list.filter((item) => item !== false).map((item) => ({ flag, value: item === true ? '' : String(item) }))
  })
  const args = [...inFile.filter(({ flag }) => !given.has(flag)), ...occurrences].map(written)
  const { values } = parseCommand(serve, args)
  await checkEarly(serve, values)
  return values as ServeValues
}

async function keysOf(apiKey: readonly string[], adminKey: readonly string[], file: string | undefined) {
  const { parseApiKey } = await import('../../../serve/node/entry.js')
  const { LOWRANK_API_KEY, LOWRANK_ADMIN_KEY } = process.env
  const lines = file === undefined ? [] : (await readTextFile(file)).split(/\r?\n/)
  const texts: [text: string, isAdmin: boolean, flag: string][] = [
    ...[...apiKey, LOWRANK_API_KEY ?? ''].map((key) => [key, false, '--api-key'] as [string, boolean, string]),
    ...[...adminKey, LOWRANK_ADMIN_KEY ?? ''].map((key) => [key, true, '--admin-key'] as [string, boolean, string]),
    ...lines.map((line) => [line.replace(/^\s*#.*/, ''), false, `--key-file ${file}`] as [string, boolean, string]),
  ]
  return texts
    .filter(([line]) => line.trim() !== '')
    .map(([line, isAdmin, flag]): ApiKey => {
      const key = parseApiKey(line, isAdmin)
      if (key === undefined) throw new UsageError(`${flag}: not a key: write ${KEY}`)
      return key
    })
}

async function resolverOf(places: readonly string[], maxBytes?: number): Promise<ResolveAdapter | undefined> {
  if (places.length === 0) return undefined
  const { folderOfAdapters, hubAdapters } = await import('../../../serve/node/entry.js')
  const all = places.map((place) => (place.startsWith('hub:') ? hubAdapters(place, maxBytes) : folderOfAdapters(place)))
  return async (name, asked) => {
    for (const resolve of all) {
      const found = await resolve(name, asked)
      if (found !== undefined) return found
    }
    return undefined
  }
}

function lineOf(entry: RequestEntry): string {
  const { id, method, route, key = '-', model = '-', status, promptTokens, cachedTokens, newTokens, ms } = entry
  const tokens = promptTokens === undefined ? '' : ` ${promptTokens} in (${cachedTokens} cached) ${newTokens} out`
  const first = entry.firstTokenMs === undefined ? '' : ` first ${Math.round(entry.firstTokenMs)} ms`
  const line = `${new Date().toISOString()} ${status} ${method} ${route} ${key} ${model}${tokens}${first} ${Math.round(ms)} ms ${id}`
  return printable(line)
}

async function movedIn({ moved, model, upstream, record, compare, budget }: ServeValues) {
  if (moved === undefined) {
    const given = { upstream, record: record || undefined, compare, budget }
    const lone = Object.entries(given).find(([, value]) => value !== undefined)
    if (lone !== undefined) throw new UsageError(`--${lone[0]} needs --moved DIR`)
    return undefined
  }
  const { openServed } = await import('../../openai/node/entry.js')
  const upstreamKey = process.env.LOWRANK_UPSTREAM_KEY
  return openServed({ dir: moved, base: model, upstream, upstreamKey, isRecorded: record, compare, budget })
}

function aliasOf(given: string): [name: string, target: string | AliasTarget] {
  const [, name, target] = /^([^=]+)=(.+)$/s.exec(given) ?? []
  if (!name || !target) throw new UsageError(`--alias ${given}: write NAME=MODEL`)
  return [name, target.startsWith('{') ? (jsonIn(target) as AliasTarget) : target]
}

/** A source alone has the name of its last part. */
function adapterOf(given: string): [name: string, source: string] {
  const [, name, source] = given.includes('=') ? (/^([^=]+)=(.+)$/.exec(given) ?? []) : [given, basename(given), given]
  if (!name || !source) throw new UsageError(`--adapter ${given}: write NAME=SOURCE`)
  return [name, source]
}

function exampleOf(url: string, model: string, hasKey: boolean, isChat: boolean): string {
  const asked = isChat ? { messages: [{ role: 'user', content: 'Who are you?' }] } : { prompt: 'And the people' }
  const body = JSON.stringify({ model, ...asked, max_tokens: 20 })
  const key = hasKey ? ' -H "Authorization: Bearer KEY"' : ''
  return `Try: curl ${url}/v1/${isChat ? 'chat/' : ''}completions -H "Content-Type: application/json"${key} -d '${body}'`
}
