// Opens sessions. What runs models loads with the first call.

import {
  anyOf,
  BOOLEAN,
  COUNT,
  checkOptions,
  isObject,
  kind,
  listOf,
  NAME,
  OBJECT,
  type OptionTable,
  oneOf,
} from '../base/options.js'
import type { Model } from '../graph/model-folder.js'
import type { AdapterSession, AdapterSessionOptions } from '../infer/session.js'
import type { LoraAdapter } from '../lora/adapter.js'
import { ADAPTER, openAdapter } from './adapters.js'
import { loadModel } from './model.js'
import { SOURCE, type Source } from './sources.js'
import { MODEL } from './train.js'

/** What {@link openSession} takes. */
export interface OpenSessionOptions extends Omit<AdapterSessionOptions, 'adapters'> {
  /** The first adapters: name → adapter in memory, or any source that {@link loadAdapter} accepts. Runs choose by this name. */
  adapters?: Readonly<Record<string, LoraAdapter | Source>> | undefined
}

const ADAPTERS = kind(
  'an object of names with LoraAdapters, paths or folders',
  (value) => isObject(value) && Object.values(value).every((one) => ADAPTER.accepts(one) || SOURCE.accepts(one)),
)

const OPTIONS: OptionTable<OpenSessionOptions> = {
  adapters: ADAPTERS,
  device: anyOf(NAME, listOf(NAME)),
  modules: OBJECT,
  allowMissing: BOOLEAN,
  threads: COUNT,
  lowMemory: BOOLEAN,
  optimization: oneOf('disabled', 'basic', 'extended', 'all'),
  profilePrefix: NAME,
}

/** See the entry. */
export async function openSession(model: Model | Source, options: OpenSessionOptions = {}): Promise<AdapterSession> {
  checkOptions(options, { of: 'openSession', table: OPTIONS })
  const { OnnxSession } = await import('../infer/adapter-session.js')
  const adapters: Record<string, LoraAdapter> = {}
  for (const [name, adapter] of Object.entries(options.adapters ?? {})) {
    adapters[name] = await openAdapter(adapter, `adapters.${name}`)
  }
  if (MODEL.accepts(model)) return OnnxSession.open(model as Model, { ...options, adapters })
  const opened = await loadModel(model as Source)
  try {
    return await OnnxSession.open(opened, { ...options, adapters }, true)
  } catch (error) {
    await opened.close()
    throw error
  }
}
