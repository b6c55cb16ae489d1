// Translates names of modules to names of tensors in GGUF files and back, by llama.cpp's tables (gen/tables.ts).

import { didYouMean, MismatchError, UnsupportedError } from '../../base/errors.js'
import { ARCHITECTURES, MODELS, TENSORS, type Way } from './gen/tables.js'

export interface GgufNames {
  /** The value of `general.architecture`. */
  readonly architecture: string
  readonly way: Way
  /** The tensor of a module, without `.weight`; undefined if llama.cpp has no tensor for it. */
  tensorOf(module: string): string | undefined
  /** The transformers module of a tensor; undefined for an unknown tensor. */
  moduleOf(tensor: string): string | undefined
}

export function namesOfModel(model: string, where: string): GgufNames {
  const found = Object.hasOwn(MODELS, model) ? MODELS[model] : undefined
  if (found === undefined) {
    throw new UnsupportedError({
      where: `${where}: architectures`,
      what: 'llama.cpp has no such model',
      got: model,
      hint: didYouMean(model, Object.keys(MODELS), 3),
    })
  }
  const [architecture, way] = found
  if (way !== undefined) return namesOf(architecture, way)
  throw new UnsupportedError({
    where: `${where}: architectures`,
    what: `llama.cpp changes the weights of ${model} on the way into a GGUF file, and this is not implemented for adapters`,
    hint: 'Merge the adapter into its base, and convert the merged model with llama.cpp',
  })
}

export function namesOfArchitecture(architecture: string, where: string): GgufNames {
  const models = Object.entries(MODELS).filter(([, [name]]) => name === architecture)
  const ways = new Set(models.flatMap(([, [, way]]) => way ?? []))
  if (models.length > 0 && ways.size === 1) return namesOf(architecture, [...ways][0])
  throw new UnsupportedError({
    where: `${where}: general.architecture`,
    what:
      models.length === 0 ? 'llama.cpp has no such architecture' : 'adapters of this architecture are not implemented',
    got: architecture,
    ...(models.length > 0 && { hint: 'Give the folder of the model with its config.json as the base' }),
  })
}

function namesOf(architecture: string, way: Way): GgufNames {
  const byModule = new Map<string, string>()
  const byTensor = new Map<string, string>()
  const { tensors, own: ownNames = {} } = ARCHITECTURES[architecture]
  const isGated = tensors.some((index) => TENSORS[index][0] === 'blk.{bid}.ffn_gate')
  for (const index of tensors) {
    const [tensor, ...modules] = TENSORS[index]
    // Names that only this architecture has come last, as in gguf-py.
    const all = [...modules, ...(Object.hasOwn(ownNames, tensor) ? ownNames[tensor] : [])]
    for (const module of all) byModule.set(module, tensor)
    byTensor.set(tensor, preferred(tensor, all, isGated))
  }
  return {
    architecture,
    way,
    tensorOf: (module) => renamed(withoutPrefix(module), byModule),
    moduleOf: (tensor) => renamed(tensor, byTensor),
  }
}

/** Removes the prefix that multimodal models give to their language model, which is what a GGUF file holds. */
function withoutPrefix(module: string): string {
  return module.replace(/^(model\.)?language_model\.(model\.)?/, 'model.').replace(/^model\.lm_head$/, 'lm_head')
}

function renamed(name: string, table: ReadonlyMap<string, string>): string | undefined {
  const whole = table.get(name)
  if (whole !== undefined) return whole
  for (const { 0: digits, index } of name.matchAll(/(?<=\.)\d+(?=\.|$)/g)) {
    const template = `${name.slice(0, index)}{bid}${name.slice(index + digits.length)}`
    const found = table.get(template)
    if (found !== undefined) return found.replace('{bid}', digits)
  }
  return undefined
}

/** If several modules belong to a tensor, the first of these is chosen: names of today's transformers come first. */
const PREFERENCES = [
  /^model\.layers\.\{bid\}\.self_attn\.(q|k|v|o|qkv)_proj$/,
  /^model\.layers\.\{bid\}\.mlp\.(gate|up|down|gate_up)_proj$/,
  /^model\.layers\.\{bid\}\.mlp\.experts\.(gate|up|down)_proj$/,
  /^model\.embed_tokens$/,
  /^lm_head$/,
  /^model\.layers\.\{bid\}\./,
  /^(model|transformer)\./,
]

/** @param isGated true if the architecture has a separate tensor for the gate; if not, `ffn_up` holds both */
function preferred(tensor: string, modules: readonly string[], isGated: boolean): string {
  const fused = 'model.layers.{bid}.mlp.gate_up_proj'
  if (tensor === 'blk.{bid}.ffn_up' && !isGated && modules.includes(fused)) return fused
  for (const pattern of PREFERENCES) {
    const found = modules.find((module) => pattern.test(module))
    if (found !== undefined) return found
  }
  return modules[0]
}

export function noTensor(module: string, { architecture }: GgufNames): MismatchError {
  return new MismatchError({
    where: module,
    what: `llama.cpp has no tensor for this module in models of the architecture ${architecture}`,
    hint: 'Check that `base` is the model that the adapter was trained on',
  })
}
