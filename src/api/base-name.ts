// Warns if an adapter is run or merged on a base that is not the one its config names. Exporting, quantizing or copying
// a model changes its name, so these changes are taken out before names are compared. A base without a known name
// causes no warning.

import { closing, type Directory, readLeniently } from '../core/base/bytes.js'
import { readBaseRecord } from '../lora/peft/files.js'
import type { Model } from '../model/model-folder.js'

const FORMS = /[-_.](onnx|web|gqa|fp32|fp16|f16|bf16|q4f16|q4|q8|int4|int8|uint8|bnb4|4bit|8bit|quantized|hf)$/

export function otherBase(
  adapter: string,
  named: string | undefined,
  { directory, config }: Pick<Model, 'directory' | 'config'>,
): string | undefined {
  const { hubId } = directory
  if (named === undefined || hubId === undefined) return undefined
  // _name_or_path in config.json may name the model itself or the model that it was made from. If it matches the
  // adapter's base, fine; if not, that means nothing.
  const recorded = config._name_or_path
  const known = [hubId, directory.name, ...(typeof recorded === 'string' ? [recorded] : [])]
  if (known.some((name) => essence(name) === essence(named))) return undefined
  return `${adapter} names ${named} as its base, which is not ${hubId}`
}

/** Returns the warning about an adapter in a folder. It compares names, or for a local base the weights. */
export async function otherBaseOf(
  adapter: { readonly name: string; readonly directory: Directory },
  base: Directory,
): Promise<string | undefined> {
  const config = (await readLeniently(base, 'config.json')) ?? {}
  const adapterConfig = (await readLeniently(adapter.directory, 'adapter_config.json')) ?? {}
  const named = adapterConfig.base_model_name_or_path
  const warning = otherBase(adapter.name, typeof named === 'string' ? named : undefined, { directory: base, config })
  if (warning !== undefined || base.hubId !== undefined) return warning
  const trainedOn = await readBaseRecord(adapter.directory)
  if (trainedOn === undefined || !(await base.has(trainedOn.graph))) return undefined
  const [{ otherWeights }, { loadOnnx }] = await Promise.all([
    import('../model/base-record.js'),
    import('../onnx/format/model.js'),
  ])
  return closing(await loadOnnx(base, trainedOn.graph), async (onnx) => {
    const words = await otherWeights(trainedOn, { onnx, onnxPath: trainedOn.graph, name: base.name })
    return words && `${adapter.name}: ${words}`
  })
}

function essence(name: string): string {
  let rest = name.replace(/[/\\]+$/, '').toLowerCase()
  rest = rest.slice(Math.max(rest.lastIndexOf('/'), rest.lastIndexOf('\\')) + 1)
  while (FORMS.test(rest)) rest = rest.replace(FORMS, '')
  return rest
}
