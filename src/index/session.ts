// Opens sessions. What runs models loads with the first call.

import {
  BOOLEAN,
  COUNT,
  checkOptions,
  FUNCTION,
  isObject,
  kind,
  NAME,
  OBJECT,
  type OptionTable,
  oneOf,
} from '../base/options.js'
import { memoryWarning, sessionMemory } from '../graph/memory.js'
import type { Model } from '../graph/model-folder.js'
import type { AdapterSession, AdapterSessionOptions } from '../infer/session.js'
import type { LoraAdapter } from '../lora/adapter.js'
import { DEVICE } from '../runtime/runtime.js'
import { ADAPTER, openAdapter } from './adapters.js'
import { checkWeightsFit, memoryLimits } from './memory.js'
import { loadModel } from './model.js'
import { SOURCE, type Source } from './sources.js'
import { MODEL } from './train.js'

/** What {@link openSession} takes. */
export interface OpenSessionOptions extends Omit<AdapterSessionOptions, 'adapters'> {
  /** The first adapters: name → adapter in memory, or any source that {@link loadAdapter} accepts. Runs choose by this name. */
  adapters?: Readonly<Record<string, LoraAdapter | Source>> | undefined
  /** Hears before opening if the model needs more memory than there is, by an estimate. Default: console.warn. */
  onWarning?: ((message: string) => void) | undefined
}

const ADAPTERS = kind(
  'an object of names with LoraAdapters, paths or folders',
  (value) => isObject(value) && Object.values(value).every((one) => ADAPTER.accepts(one) || SOURCE.accepts(one)),
)

const OPTIONS: OptionTable<OpenSessionOptions> = {
  adapters: ADAPTERS,
  onWarning: FUNCTION,
  device: DEVICE,
  modules: OBJECT,
  allowMissing: BOOLEAN,
  threads: COUNT,
  lowMemory: BOOLEAN,
  optimization: oneOf('disabled', 'basic', 'extended', 'all'),
  profilePrefix: NAME,
}

/** See the entry. */
export async function openSession(model: Model | Source, given: OpenSessionOptions = {}): Promise<AdapterSession> {
  checkOptions(given, { of: 'openSession', table: OPTIONS })
  const { onWarning = console.warn, ...options } = given
  const { OnnxSession } = await import('../infer/adapter-session.js')
  const adapters: Record<string, LoraAdapter> = {}
  for (const [name, adapter] of Object.entries(options.adapters ?? {})) {
    adapters[name] = await openAdapter(adapter, `adapters.${name}`)
  }
  const open = (opened: Model, isOurs: boolean) => {
    const need = sessionMemory(opened.onnx, options.lowMemory)
    const limits = memoryLimits(opened)
    checkWeightsFit(need, limits)
    const help = ["dtype 'q4' (--dtype q4), where the model has it", ...(options.lowMemory ? [] : ['lowMemory: true'])]
    const warning = memoryWarning(need, limits, { what: 'The model', help })
    if (warning !== undefined) onWarning(warning)
    return OnnxSession.open(opened, { ...options, adapters }, isOurs)
  }
  if (MODEL.accepts(model)) return open(model as Model, false)
  const opened = await loadModel(model as Source)
  try {
    return await open(opened, true)
  } catch (error) {
    await opened.close()
    throw error
  }
}
