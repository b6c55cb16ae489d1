// Checks before anything is computed: options before the data is read, tensors before the first step.

import { ConfigError, MismatchError, StateError } from '../core/base/errors.js'
import { adviceOn } from '../core/base/words.js'
import type { LoraAdapter } from '../lora/adapter.js'
import { type LoraConfig, resolveConfig } from '../lora/config.js'
import { DRAWN_INITS, type Init } from '../lora/init/inits.js'
import { requireHandled, requirePlainConfig } from '../lora/requirements.js'
import { doraOfEmbedding } from '../model/place/place.js'
import { baseNameOf } from './about-run.js'
import { placeInBase } from './engine/whole-tensors.js'
import type { TrainInput } from './options.js'
import type { Context } from './rows/token-rows.js'
import { defaultsOf, TRAIN_DEFAULTS, type TrainSettings, usesBest } from './settings.js'

export function checkOptions(options: TrainInput, settings: TrainSettings): LoraConfig {
  const { adapter, model } = options
  checkTogether(options, settings)
  const given = Object.entries(options.config ?? {}).filter(([, value]) => value !== undefined)
  const defaults = { ...defaultsOf(options.preset).config, ...baseNameOf(model) }
  const config = adapter?.config ?? resolveConfig({ ...defaults, ...Object.fromEntries(given) })
  if (adapter === undefined) checkInit(config.init)
  else checkAdapter(adapter)
  const { alpha, dropout } = config
  if (dropout >= 1 || (adapter === undefined && alpha <= 0)) {
    const [where, expected, got] = dropout >= 1 ? ['dropout', 'below 1', dropout] : ['alpha', 'above 0', alpha]
    throw new ConfigError({
      where,
      what: 'nothing would be learned',
      expected: `a number ${expected}`,
      got: String(got),
    })
  }
  checkParameters(config)
  const others = {
    modulesToSave: [],
    targetParameters: [],
    bias: 'none',
    useDora: false,
    trainableTokenIndices: undefined,
  } as const
  requirePlainConfig({ ...config, ...others }, 'training')
  return config
}

function checkParameters({ targetParameters, dropout, useDora }: LoraConfig): void {
  if (targetParameters.length === 0 || (dropout === 0 && !useDora)) return
  const where = useDora ? 'useDora' : 'dropout'
  throw new ConfigError({
    where,
    what: 'not together with targetParameters, as in PEFT',
    expected: String(useDora ? false : 0),
  })
}

/** `train` would begin with other values than the config says. */
function checkInit(init: Init): void {
  if ((DRAWN_INITS as readonly Init[]).includes(init)) return
  throw new ConfigError({
    where: 'init',
    what: 'train starts new adapters from shapes alone, and this start needs data or the weights of the base',
    expected: DRAWN_INITS.join(', '),
    got: init,
    hint: adviceOn(init, ['init']),
  })
}

function checkAdapter(adapter: LoraAdapter): void {
  requireHandled(adapter, ['linear', 'embedding', 'parameter', 'replacement', 'magnitude', 'token-rows'], 'training')
  for (const { name, magnitude } of adapter.parts('embedding')) if (magnitude !== undefined) throw doraOfEmbedding(name)
  if (adapter.size === 0) throw new StateError({ where: 'adapter', what: 'it has no layers to train' })
  for (const { name, merged } of adapter.parts('linear')) {
    if (merged) throw new StateError({ where: name, what: 'it is merged', hint: 'Call unmerge() first' })
  }
}

function checkTogether(options: TrainInput, settings: TrainSettings): void {
  const { adapter, out, evalData, evalSplit, resume, overwrite } = options
  const hasOwn = (part: string) => `not together with adapter: the adapter has its own ${part}`
  const isFurther = adapter !== undefined
  const writes = resume || overwrite || settings.saveEvery !== undefined
  const hasLayers = options.config?.layersToTransform !== undefined
  const notWith = (option: string) => `not together with ${option}: use one of the two`
  const problems: [isWrong: boolean | undefined, where: string, what: string, hint?: string][] = [
    [isFurther && options.config !== undefined, 'config', hasOwn('config')],
    [isFurther && options.trainedTokens !== undefined, 'trainedTokens', hasOwn('trained tokens')],
    [isFurther && settings.newHead, 'newHead', hasOwn('head')],
    [isFurther && options.numLayers !== undefined, 'numLayers', hasOwn('layers')],
    [hasLayers && options.numLayers !== undefined, 'numLayers', notWith('`layersToTransform`')],
    [options.warmupSteps !== undefined && options.warmupRatio !== undefined, 'warmupSteps', notWith('`warmupRatio`')],
    [writes && out === undefined, 'out', 'resume, overwrite and saveEvery need an output folder'],
    [evalData !== undefined && evalSplit !== undefined, 'evalSplit', notWith('`evalData`')],
    [resume && overwrite, 'resume', notWith('overwrite')],
  ]
  const found = problems.find(([isWrong]) => isWrong)
  if (found === undefined) return
  const [, where, what, hint] = found
  throw new ConfigError({ where, what, hint })
}

/** Refuses settings about evaluations in a run without them. */
export function checkEvaluated(settings: TrainSettings, hasRecords: boolean): void {
  const evaluates = [
    ['`evalEvery`', settings.evalEvery !== undefined],
    ["`keep: 'best'`", settings.keep === 'best'],
    ['`earlyStopping`', settings.earlyStopping !== undefined],
  ].find(([, isOn]) => isOn)
  if (evaluates !== undefined && !hasRecords) {
    const hint = 'Give `evalData`, or `evalSplit`'
    throw new ConfigError({ where: 'evalData', what: `${evaluates[0]} needs records to evaluate`, hint })
  }
  if (settings.bestMetric === TRAIN_DEFAULTS.bestMetric || usesBest(settings)) return
  const what = "it has no effect without `keep: 'best'` or `earlyStopping`"
  throw new ConfigError({ where: 'bestMetric', what })
}

export async function checkParts(adapter: LoraAdapter, context: Context): Promise<void> {
  const { open } = context
  const replaced = new Map(adapter.parts('replacement').map(({ name, shape }) => [name, shape.join()]))
  const wanted = new Map((open.head?.tensors ?? []).map(({ name, shape }) => [name, shape.join()]))
  const differing = [...wanted.keys()].find((name) => replaced.get(name) !== wanted.get(name))
  const unknown = adapter.config.modulesToSave.find(
    (module) => !isSaved(module, [...replaced.keys(), ...wanted.keys()]),
  )
  if (differing === undefined && unknown === undefined) {
    if (replaced.size > 0) await placeInBase(adapter.only(new Set(replaced.keys())), context)
    return
  }
  throw new MismatchError({
    where: differing ?? 'modulesToSave',
    what: 'the adapter replaces other tensors than this task trains',
    expected: [...wanted].map(([name, shape]) => `${name} (${shape})`).join(', ') || 'layers of LoRA alone',
    got:
      [...replaced].map(([name, shape]) => `${name} (${shape})`).join(', ') || adapter.config.modulesToSave.join(', '),
  })
}

/**
 * Tells whether one of the tensors belongs to the module. `classifier` and `score` always pass: PEFT lists both in
 * modules_to_save, whichever of them the model has.
 */
function isSaved(module: string, tensors: readonly string[]): boolean {
  return /^(classifier|score)$/.test(module) || tensors.some((name) => `.${name}`.includes(`.${module}.`))
}
