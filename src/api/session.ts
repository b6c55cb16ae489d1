// Opens sessions. The code that runs models is loaded with the first call.

import type { Source } from '../core/base/bytes.js'
import { closingOnError } from '../core/base/bytes.js'
import { checkOptions } from '../core/base/options.js'
import type { LoraAdapter } from '../lora/adapter.js'
import type { RunAdapter } from '../lora/run-adapter.js'
import { memoryWarning, sessionMemory } from '../model/memory.js'
import type { Model } from '../model/model-folder.js'
import { MODEL } from '../model/source-values.js'
import type { AdapterSessionOptions, AdapterSession as BaseSession } from '../run/session.js'
import { OPEN_SESSION_OPTIONS } from './gen/run-options.js'
import { loadModel } from './model.js'
import { checkWeightsFit, memoryLimits } from './platform/memory.js'
import { platform } from './platform/platform.js'
import { openToRun } from './sources.js'

/** A base model in memory with any number of adapters. `openSession` opens it. */
export interface AdapterSession extends BaseSession {
  /**
   * Copies an adapter into the session; runs choose it by `name`. If no earlier adapter changes the same modules, the
   * session loads the base again, and two copies are in memory for a short time. To avoid this, pass the adapter to
   * `openSession`. The same happens with the first adapter that has DoRA or biases of B for a module.
   *
   * @param adapter an adapter in memory, or any source that {@link loadAdapter} accepts
   * @throws MismatchError when a layer has no module in the model, or another shape there; UnsupportedError when the
   *   session cannot run a part of the adapter; NumericError when a weight is not finite; StateError when the name is
   *   used already or the session is closed; ConfigError when an argument is not valid; what {@link loadAdapter}
   *   throws. If `add` throws, the session does not change.
   *
   * @example
   * const session = await openSession('models/union-3m')
   * await session.add('peft', 'tests/golden/peft/f32')
   * console.log(session.adapters)
   * await session.dispose()
   */
  add(name: string, adapter: LoraAdapter | Source): Promise<void>
}

/** Callbacks of a session. */
export interface SessionEvents {
  /**
   * Called before opening if the model probably needs more memory than is free. With `allowMissing`, also called if
   * layers of an adapter are left out, at opening and at each `add`.
   */
  warning?(message: string): void
}

/** Options of {@link openSession}. */
export interface OpenSessionOptions extends Omit<AdapterSessionOptions, 'adapters'> {
  /**
   * The first adapters: name → adapter in memory, or any source that {@link loadAdapter} accepts. Runs choose by this
   * name.
   */
  adapters?: Readonly<Record<string, LoraAdapter | Source>> | undefined
  /** Callbacks. Default: warnings go to console.warn. `{}` is silent. */
  on?: SessionEvents | undefined
}

/** Throws unless a model can write texts. Reads no weights. */
export async function requireTexts(model: Model): Promise<void> {
  const { textFormOf } = await import('../run/generate/text-graph.js')
  const { requireTokenizer } = await import('../model/model-folder.js')
  requireTokenizer(model)
  await textFormOf(model)
}

export async function openSession(model: Model | Source, given: OpenSessionOptions = {}): Promise<AdapterSession> {
  checkOptions(given, 'openSession', OPEN_SESSION_OPTIONS, {
    elsewhere: { dtype: 'Give it to loadModel: openSession(await loadModel(source, { dtype }))' },
  })
  const { on = { warning: console.warn }, ...options } = given
  const onWarning = (message: string) => on.warning?.(message)
  const [{ ModelSession }] = await Promise.all([
    import('../run/model-session.js'),
    // Named here too, so that bundlers keep the code that reads graphs in one chunk: a page is 2 kB smaller.
    import('../model/place/linears.js'),
  ])
  const adapters: Record<string, RunAdapter> = {}
  for (const [name, adapter] of Object.entries(options.adapters ?? {})) {
    adapters[name] = await openToRun(adapter, `adapters.${name}`)
  }
  const read = (adapter: unknown) => openToRun(adapter as LoraAdapter | Source, 'adapter')
  const open = (opened: Model, isOurs: boolean) => {
    const isLow = options.memory === 'low'
    const need = sessionMemory(opened.onnx, isLow)
    const limits = memoryLimits(opened)
    checkWeightsFit(need, limits)
    const help = ["`dtype: 'q4'`, if the model has it", ...(isLow ? [] : ["`memory: 'low'`"])]
    const warning = memoryWarning(need, limits, { what: 'The model', help })
    if (warning !== undefined) onWarning(warning)
    const onMissing = (name: string, layers: readonly string[]) =>
      onWarning(`adapter ${name}: left out, because the model has no module for it: ${layers.join(', ')}`)
    return ModelSession.open(opened, { ...options, adapters }, isOurs, {
      openAdapter: read,
      onMissing,
      onWarning,
      decodeImage: platform().decodeImage,
    })
  }
  if (MODEL.accepts(model)) return open(model as Model, false)
  return closingOnError(await loadModel(model as Source), (opened) => open(opened, true))
}
