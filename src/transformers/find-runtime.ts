// transformers.js's own ONNX Runtime: pipelines know tensors by class, and two copies disturb each other.

import { MismatchError, RuntimeError } from '../base/errors.js'
import { isObject } from '../base/options.js'
import { importWebRuntime } from '../runtime/load.js'
import type { OrtModule } from '../runtime/onnxruntime.js'
import { runtimeModule, type TransformersModule } from './module.js'

interface Place {
  readonly device: string
  candidates(): Promise<readonly unknown[]>
}

let place: Place = {
  device: 'wasm',
  candidates: async () => [await importWebRuntime()],
}

export function usePlace(other: Place): void {
  place = other
}

export function defaultDevice(): string {
  return place.device
}

export async function findRuntime(transformers: TransformersModule): Promise<OrtModule> {
  const theirs = transformers.env.backends.onnx?.versions
  const found = (await place.candidates()).flatMap((module) => versionsOf(module))
  const same = found.find(({ versions }) => versions === theirs)
  if (same !== undefined) {
    const { ort_tensor: tensor } = new transformers.Tensor('float32', Float32Array.of(0), [1])
    return runtimeModule(same.module, tensor)
  }
  const hint = 'Open the pipeline with transformers.js, and give it to withAdapters'
  if (found.length === 0) {
    throw new RuntimeError({ where: 'ONNX Runtime', what: 'that of transformers.js cannot be imported', hint })
  }
  throw new MismatchError({
    where: 'ONNX Runtime',
    what: 'there are two of them: transformers.js uses another one than the one that is found here',
    expected: versionText(theirs),
    got: found.map(({ versions }) => versionText(versions)).join(', '),
    hint: `Install one version alone (npm ls onnxruntime-node onnxruntime-web). Or: ${hint.toLowerCase()}`,
  })
}

interface Found {
  readonly module: OrtModule
  readonly versions: Readonly<Record<string, string | undefined>>
}

function versionsOf(imported: unknown): Found[] {
  const module = isObject(imported) && 'InferenceSession' in imported ? imported : undefined
  const { env } = (module ?? {}) as Partial<OrtModule>
  return module === undefined || env?.versions === undefined
    ? []
    : [{ module: module as unknown as OrtModule, versions: env.versions }]
}

function versionText(versions: Readonly<Record<string, string | undefined>> = {}): string {
  const { node, web, common } = versions
  if (node !== undefined) return `onnxruntime-node ${node}`
  return web === undefined ? `onnxruntime-common ${common}` : `onnxruntime-web ${web}`
}
