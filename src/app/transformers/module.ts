// The parts of transformers.js that are used here, and the versions that have them.
// API: https://huggingface.co/docs/transformers.js/api/transformers

import { ConfigError, messageOf, RuntimeError, UnsupportedError } from '../../core/base/errors.js'
import { isObject } from '../../core/base/options.js'
import type { OrtModule } from '../../onnx/runtime/onnxruntime.js'
import type { Feeds } from '../../onnx/runtime/runtime.js'

/** The oldest version of transformers.js that works. Before it, models, pipelines or sessions have another form. */
const OLDEST = [4, 3]

export type Class<Instance> = new (...args: unknown[]) => Instance

/** A model: https://huggingface.co/docs/transformers.js/api/models#module_models.PreTrainedModel */
export interface PreTrainedModel {
  config: Record<string, unknown>
  sessions: Record<string, PipelineSession>
  configs: unknown
  dispose(): Promise<unknown>
}

export interface PipelineSession {
  readonly inputNames: readonly string[]
  readonly outputNames: readonly string[]
  readonly inputMetadata: readonly InputMetadata[]
  readonly config?: { readonly dtype?: unknown; readonly device?: unknown } | undefined
  run(feeds: Feeds): Promise<Record<string, unknown>>
  release(): Promise<void>
}

export interface InputMetadata {
  readonly name: string
  readonly isTensor: true
  readonly type: string
  readonly shape: readonly (number | string)[]
}

/** A pipeline: https://huggingface.co/docs/transformers.js/api/pipelines */
export interface PipelineInstance {
  (...args: never[]): Promise<unknown>
  readonly task: string
  model: PreTrainedModel
  readonly tokenizer: (text: string) => { input_ids: { ort_tensor: object } }
  readonly processor?: unknown
}

/** The module. Classes of models, tokenizers and pipelines are looked up by name. */
export interface TransformersModule {
  readonly env: {
    readonly version: string
    readonly useCustomCache?: boolean
    readonly allowRemoteModels?: boolean
    readonly customCache?: { match(key: string): Promise<unknown> } | null
    readonly backends: { readonly onnx?: { readonly versions?: Readonly<Record<string, string | undefined>> } }
  }
  readonly Tensor: new (type: string, data: unknown, dims: readonly number[]) => { readonly ort_tensor: object }
  readonly PreTrainedModel: { from_pretrained(name: string, options: object): Promise<PreTrainedModel> }
  readonly AutoConfig: { from_pretrained(name: string, options: { config: unknown }): Promise<Record<string, unknown>> }
}

const PARTS = ['env', 'Tensor', 'AutoConfig', 'AutoModel', 'TextGenerationPipeline']

export async function transformersModule(given: unknown): Promise<TransformersModule> {
  const module = given ?? (await importTransformers())
  if (!isObject(module) || PARTS.some((part) => !(part in module))) {
    throw new ConfigError({
      where: 'transformers',
      what: 'not usable',
      expected: 'the imported module @huggingface/transformers',
      hint: "import * as transformers from '@huggingface/transformers'",
    })
  }
  const { version } = (module as unknown as TransformersModule).env
  const [major, minor] = String(version).split('.').map(Number)
  if (!(major > OLDEST[0] || (major === OLDEST[0] && minor >= OLDEST[1]))) {
    throw new UnsupportedError({
      where: '@huggingface/transformers',
      what: 'this version is too old for adapters',
      expected: `${OLDEST.join('.')} or later`,
      got: String(version),
      hint: 'npm install @huggingface/transformers@latest',
    })
  }
  return module as unknown as TransformersModule
}

async function importTransformers(): Promise<unknown> {
  try {
    return await import('@huggingface/transformers')
  } catch (cause) {
    throw new RuntimeError({
      where: '@huggingface/transformers',
      what: `cannot be imported: ${messageOf(cause)}`,
      hint: 'npm install @huggingface/transformers, or give its imported module as the option `transformers`',
      cause,
    })
  }
}

/** Returns a class by name, or the class `otherwise` if the installed version does not have it. */
export function classNamed<T>(module: TransformersModule, name: string, otherwise?: string): Class<T> {
  const found = (module as unknown as Record<string, unknown>)[name]
  if (typeof found !== 'function' && otherwise !== undefined) return classNamed(module, otherwise)
  if (typeof found === 'function') return found as Class<T>
  throw new UnsupportedError({ where: name, what: `@huggingface/transformers ${module.env.version} has no such class` })
}

type SessionModule = Pick<OrtModule, 'InferenceSession' | 'listSupportedBackends'>

/** Depends on the platform: the default device, and how to find the ONNX Runtime of transformers.js. */
let place: {
  device: string
  runtimeOf(transformers: TransformersModule): Promise<SessionModule | undefined>
} = { device: 'wasm', runtimeOf: runtimeOfSession }

export function usePlace(used: typeof place): void {
  place = used
}

export function defaultDevice(): string {
  return place.device
}

/**
 * Finds the copy of ONNX Runtime that transformers.js uses. Another copy would not do: pipelines recognize tensors by
 * class, and two copies in a process disturb each other.
 */
export async function findRuntime(transformers: TransformersModule): Promise<OrtModule> {
  const found = await place.runtimeOf(transformers)
  if (found === undefined) {
    const hint = 'Import @huggingface/transformers as a package: bundled into one file, it hides its onnxruntime-node'
    throw new RuntimeError({ where: 'ONNX Runtime', what: 'the copy that transformers.js uses is not found', hint })
  }
  const { InferenceSession, listSupportedBackends } = found
  const { ort_tensor: tensor } = new transformers.Tensor('float32', Float32Array.of(0), [1])
  return {
    ...(listSupportedBackends !== undefined && { listSupportedBackends }),
    InferenceSession,
    Tensor: tensor.constructor as OrtModule['Tensor'],
  }
}

/** An ONNX model of one node, Identity. */
const SMALLEST = 'CAgSADo3ChAKAXgSAXkiCElkZW50aXR5EgFnWg8KAXgSCgoICAESBAoCCAFiDwoBeRIKCggIARIECgIIAUIECgAQDQ=='

/**
 * Has transformers.js open a session, and takes its class: transformers.js does not export its ONNX Runtime, and what a
 * page imports by that name may be another version. The model comes through the cache that transformers.js asks first.
 */
async function runtimeOfSession({ env, PreTrainedModel }: TransformersModule): Promise<SessionModule> {
  const { useCustomCache, customCache, allowRemoteModels } = env
  const restore = () => Object.assign(env, { useCustomCache, customCache, allowRemoteModels })
  const name = 'lowrank/smallest'
  const match = async (key: string) => {
    if (!key.includes(name)) return useCustomCache ? customCache?.match(key) : undefined
    restore()
    return new Response(Uint8Array.from(atob(SMALLEST), (letter) => letter.charCodeAt(0)))
  }
  // If no models are allowed, not even the cache is asked.
  Object.assign(env, { useCustomCache: true, customCache: { match, put: async () => {} }, allowRemoteModels: true })
  try {
    const config = { model_type: 'custom' }
    const model = await PreTrainedModel.from_pretrained(name, { config, device: 'wasm', dtype: 'fp32' })
    const InferenceSession = model.sessions.model.constructor as unknown as OrtModule['InferenceSession']
    await model.dispose()
    return { InferenceSession }
  } finally {
    restore()
  }
}
