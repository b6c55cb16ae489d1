// lowrank serve: OpenAI's HTTP routes over one model and many adapters.

import { basename } from 'node:path'
import { closing } from '../../base/bytes.js'
import { requireChatTemplate } from '../../index/model.js'
import type { LoraAdapter, OpenSessionOptions, SignalLike } from '../../index.js'
import { flags } from '../flags.js'
import { defineCommand, MODEL, RUNS, repeated, text, toggle, UsageError } from '../options.js'
import { interruptible } from '../show/interrupt.js'
import { colors, printable, say, warn } from '../show/terminal.js'
import { baseOfAdapter } from './with-session.js'

export const serve = defineCommand({
  name: 'serve',
  summary: 'answer HTTP requests in OpenAI’s form, with an adapter for each',
  about: [
    'Opens the model once. The “model” of a request chooses the base or an adapter by its name.',
    'Routes: /v1/models, /v1/chat/completions, /v1/completions, /v1/responses, /v1/embeddings, /classify, /health, /metrics.',
    'Ctrl-C or SIGTERM: answers what has begun, refuses what is new, and stops.',
  ].join('\n'),
  examples: ['lowrank serve models/union-3m --adapter peft=tests/golden/peft/f32 --port 0'],
  subject: ['model'],
  options: {
    model: text(MODEL, `${RUNS}; default: the base of the first adapter`),
    ...flags('LoadModelOptions', 'dtype'),
    adapter: repeated('[NAME=]SOURCE', 'an adapter, and the name by which requests choose it. Default: its last part'),
    allowLoading: text('FOLDER', 'load adapters of this folder by their names, and on /v1/load_lora_adapter'),
    allow: repeated('KIND', 'parts of adapters that come later, beside lora: dora, biases, embeddings or heads'),
    ...flags('HandlerOptions', 'name', 'maxAdapters', 'maxRunning', 'maxQueue', 'maxTokens'),
    ...flags('ListenOptions'),
    apiKey: repeated('KEY', 'a key that callers must send; also LOWRANK_API_KEY'),
    origin: repeated('ORIGIN', 'a page that may call from a browser, such as https://example.com'),
    ...flags('OpenSessionOptions', 'device', 'threads', 'prefixCache'),
    quiet: toggle('print the address alone'),
  },
  async run(values) {
    const { model: named, dtype, adapter, allow, allowLoading, apiKey, origin, quiet, ...own } = values
    const { host, port, drainSeconds, device, threads, prefixCache, maxRunning: maxBatch, ...limits } = own
    const { createHandler, folderOfAdapters, listen, requirePort } = await import('../../serve/node/entry.js')
    const { loadAdapter, loadModel } = await import('../../node.js')
    const sources = adapter.map(adapterOf)
    const twice = sources.find(([name], i) => sources.findIndex(([other]) => other === name) < i)
    if (twice !== undefined) throw new UsageError(`--adapter: two are called ${twice[0]}: write NAME=SOURCE`)
    // The handler refuses unknown ones.
    const kinds = ['lora', ...allow.flatMap((names) => names.split(','))] as OpenSessionOptions['allow']
    const environment = process.env.LOWRANK_API_KEY
    const keys = [...apiKey, ...(environment ? [environment] : [])]
    const isLocal = ['127.0.0.1', 'localhost', '::1', undefined].includes(host)
    if (named === undefined && sources.length === 0) throw new UsageError(`--model ${MODEL} is missing`)
    await requirePort({ host, port })
    const adapters: Record<string, LoraAdapter> = {}
    for (const [name, source] of sources) adapters[name] = await loadAdapter(source)
    const [[name, first]] = sources.length > 0 ? sources : [['', '']]
    const source = named ?? (await baseOfAdapter(first, adapters[name]))
    return closing(await loadModel(source, { dtype }), async (model) => {
      const handler = await createHandler({
        ...limits,
        model,
        adapters,
        session: {
          ...{ device, threads, prefixCache, maxBatch, onWarning: warn },
          allow: allowLoading === undefined ? undefined : kinds,
        },
        apiKeys: keys.length > 0 ? keys : undefined,
        hosts: isLocal ? ['127.0.0.1', 'localhost', '[::1]'] : undefined,
        origins: origin,
        resolveAdapter: allowLoading === undefined ? undefined : folderOfAdapters(allowLoading),
        onError: (error) => warn(error instanceof Error ? (error.stack ?? error.message) : String(error)),
      })
      const isChat = (await requireChatTemplate(model.directory).catch(() => false)) !== false
      // From here on a signal ends nothing at once: whoever knows the address may have asked something.
      await interruptible('Answering what has begun.', async (signal) => {
        const { url, close } = await listen(handler, { host, port, drainSeconds })
        say(`${colors.bold(url)} serves ${printable([handler.base, ...Object.keys(adapters)].join(', '))}`)
        if (!quiet) say(exampleOf(url, Object.keys(adapters)[0] ?? handler.base, keys.length > 0, isChat))
        if (!isLocal && keys.length === 0) warn('Everybody who reaches this address can use it: give --api-key KEY')
        await aborted(signal)
        await close()
      })
      await handler.close()
      return 0
    })
  },
})

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

function aborted(signal: SignalLike): Promise<void> {
  if (signal.aborted) return Promise.resolve()
  return new Promise((resolve) => signal.addEventListener('abort', () => resolve(), { once: true }))
}
