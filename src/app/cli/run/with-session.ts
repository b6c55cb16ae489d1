// Options and steps of all commands that run a model with adapters.

import { existsSync } from 'node:fs'
import path from 'node:path'
import { otherBase } from '../../../api/base-name.js'
import type { AdapterSession, LoraAdapter, LoraConfig } from '../../../api/index.js'
import { requireChatTemplate } from '../../../api/model.js'
import { closing } from '../../../core/base/bytes.js'
import { flags } from '../flags.js'
import { ADAPTER, MODEL, RUNS, repeated, text, toggle, UsageError, type Values } from '../options.js'
import { interruptible } from '../show/interrupt.js'
import { colors, printable, say, warn } from '../show/terminal.js'

export const SESSION_OPTIONS = {
  model: text(MODEL, `${RUNS}; default: the base of the first adapter`),
  ...flags('LoadModelOptions', 'dtype'),
  adapter: repeated(ADAPTER, 'adapter: a folder, or an id on the Hub'),
  ...flags('OpenSessionOptions', 'allowMissing'),
}

export const OUTPUT_OPTIONS = {
  ...flags('OpenSessionOptions', 'device', 'threads'),
  json: toggle('print one JSON document on stdout'),
}

export const PROMPT_OPTIONS = flags('EmbeddingOptions', 'queryPrompt', 'documentPrompt')

/** Moves the prompts of texts, which have options of their own here, to the settings of the task. */
export function withPrompts<T extends { readonly taskOptions?: Readonly<Record<string, unknown>> | undefined }>(
  options: T & Partial<Values<typeof PROMPT_OPTIONS>>,
): Omit<T, keyof typeof PROMPT_OPTIONS> {
  const { queryPrompt, documentPrompt, ...rest } = options
  const prompts = Object.entries({ queryPrompt, documentPrompt }).filter(([, prompt]) => prompt !== undefined)
  return prompts.length === 0 ? rest : { ...rest, taskOptions: { ...rest.taskOptions, ...Object.fromEntries(prompts) } }
}

type SessionValues = Values<typeof SESSION_OPTIONS> & Pick<Values<typeof OUTPUT_OPTIONS>, 'device' | 'threads'>

/**
 * Opens a model with adapters, calls `use`, and closes the model. Commands that write texts pass `needsTemplate`, which
 * says whether the model must have a chat template. That and whether it can write texts is checked before the weights
 * are loaded.
 */
export async function withSession(
  { model: named, dtype, adapter: folders, allowMissing, device, threads }: SessionValues,
  use: (session: AdapterSession, signal: AbortSignal, adapters: ReadonlyMap<string, LoraAdapter>) => Promise<number>,
  needsTemplate?: (adapters: ReadonlyMap<string, LoraAdapter>) => boolean,
): Promise<number> {
  if (named === undefined && folders.length === 0) throw new UsageError(`--model ${MODEL} is missing`)
  const node = await import('../../../api/node.js')
  const adapters: [string, LoraAdapter][] = []
  for (const folder of folders) adapters.push([folder, await node.loadAdapter(folder)])
  const source = named ?? (await baseOfAdapter(folders[0], adapters[0][1]))
  if (needsTemplate?.(new Map(adapters))) await requireChatTemplate(source)
  return closing(await node.loadModel(source, { dtype }), async (model) => {
    if (needsTemplate !== undefined) await (await import('../../../api/session.js')).requireTexts(model)
    for (const [folder, { config }] of adapters) {
      const warning = otherBase(folder, config.baseModel, model)
      if (warning !== undefined) warn(warning)
    }
    const session = await node.openSession(model, {
      adapters: Object.fromEntries(adapters),
      allowMissing,
      device,
      threads,
      on: { warning: warn },
    })
    try {
      return await interruptible('Stopping.', async (interrupt) => {
        const closed = new AbortController()
        process.stdout.once('error', () => closed.abort())
        return use(session, AbortSignal.any([interrupt, closed.signal]), new Map(adapters))
      })
    } finally {
      await session.dispose()
    }
  })
}

export async function baseOfAdapter(folder: string, opened?: LoraAdapter): Promise<string> {
  const { loadAdapter } = await import('../../../api/node.js')
  const source = baseOf(folder, (opened ?? (await loadAdapter(folder))).config)
  if (source === undefined) throw new UsageError(`${folder} does not name its base: give it with --model ${MODEL}`)
  say(`The base is ${colors.bold(printable(source))}, as ${folder} names it`)
  return source
}

/**
 * Returns the base that an adapter names. A relative path is also looked up from the adapter's folder and the folders
 * above it, so that adapter and base can be moved together.
 */
export function baseOf(folder: string, config: Pick<LoraConfig, 'baseModel' | 'peftFields'>): string | undefined {
  const { baseModel, peftFields } = config
  if (baseModel === undefined || existsSync(baseModel)) return baseModel
  if (/^\.{1,2}[/\\]/.test(baseModel)) {
    for (let from = path.resolve(folder); ; from = path.dirname(from)) {
      const found = path.resolve(from, baseModel)
      if (existsSync(found)) return found
      if (path.dirname(from) === from) return baseModel
    }
  }
  const { revision } = peftFields
  return typeof revision === 'string' && ID.test(baseModel) ? `hf:${baseModel}@${revision}` : baseModel
}

const ID = /^[\w-][\w.-]*\/[\w.-]+$/
