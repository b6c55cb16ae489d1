// transformers.js as this folder sees it: its parts that are used, and which versions have them.
// API: https://huggingface.co/docs/transformers.js/api/transformers

import { ConfigError, messageOf, RuntimeError, UnsupportedError } from '../base/errors.js'
import { isObject } from '../base/options.js'
import type { OrtModule } from '../runtime/onnxruntime.js'
import type { Feeds } from '../runtime/runtime.js'

/** The oldest version whose models, pipelines and sessions have the form that is used here. */
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

/** Classes of models, tokenizers and pipelines are found by their names. */
export interface TransformersModule {
  readonly env: {
    readonly version: string
    readonly backends: { readonly onnx?: { readonly versions?: Readonly<Record<string, string | undefined>> } }
  }
  readonly Tensor: new (type: string, data: unknown, dims: readonly number[]) => { readonly ort_tensor: object }
  readonly AutoConfig: {
    from_pretrained(name: string, options: { config: unknown }): Promise<Record<string, unknown>>
  }
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
  if (!isSupported(version)) {
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

function isSupported(version: unknown): boolean {
  const [major, minor] = String(version).split('.').map(Number)
  return major > OLDEST[0] || (major === OLDEST[0] && minor >= OLDEST[1])
}

/** `otherwise` is taken where the installed version has no class of that name. */
export function classNamed<T>(module: TransformersModule, name: string, otherwise?: string): Class<T> {
  const found = (module as unknown as Record<string, unknown>)[name]
  if (typeof found !== 'function' && otherwise !== undefined) return classNamed(module, otherwise)
  if (typeof found === 'function') return found as Class<T>
  throw new UnsupportedError({ where: name, what: `@huggingface/transformers ${module.env.version} has no such class` })
}

/** ONNX Runtime as sessions are opened with it. Inputs may be of any copy's Tensor class. */
export function runtimeModule(
  { InferenceSession, listSupportedBackends }: Pick<OrtModule, 'InferenceSession' | 'listSupportedBackends'>,
  ortTensor: object,
): OrtModule {
  return {
    ...(listSupportedBackends !== undefined && { listSupportedBackends }),
    InferenceSession,
    Tensor: ortTensor.constructor as OrtModule['Tensor'],
  }
}
