// Translates names of modules to names of tensors in GGUF files, by llama.cpp's tables (gen/tables.ts).

import { didYouMean, MismatchError, UnsupportedError } from '../../../core/base/errors.js'
import { ARCHITECTURES, MODELS, TENSORS, type Way } from './gen/tables.js'

export interface GgufNames {
  /** The value of `general.architecture`. */
  readonly architecture: string
  readonly way: Way
  /** The tensor of a module, without `.weight`; undefined if llama.cpp has no tensor for it. */
  tensorOf(module: string): string | undefined
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

/** The names in a GGUF file, whose class of model is not known. All classes of an architecture are stored alike. */
export function namesOfArchitecture(architecture: string, where: string): GgufNames {
  const ways = Object.values(MODELS).flatMap(([name, way]) => (name === architecture && way !== undefined ? way : []))
  if (ways.length > 0) return namesOf(architecture, ways[0])
  throw new UnsupportedError({
    where: `${where}: general.architecture`,
    what: Object.hasOwn(ARCHITECTURES, architecture)
      ? 'llama.cpp changes the weights of these models on the way into a GGUF file, and this is not implemented'
      : 'lowrank does not know this architecture of GGUF files',
    got: architecture,
    hint: 'Merge into the checkpoint, and convert the merged model with llama.cpp',
  })
}

function namesOf(architecture: string, way: Way): GgufNames {
  const byModule = new Map<string, string>()
  const { tensors, own: ownNames = {} } = ARCHITECTURES[architecture]
  for (const index of tensors) {
    const [tensor, ...modules] = TENSORS[index]
    // Names that only this architecture has come last, as in gguf-py.
    for (const module of [...modules, ...(Object.hasOwn(ownNames, tensor) ? ownNames[tensor] : [])]) {
      byModule.set(module, tensor)
    }
  }
  return {
    architecture,
    way,
    tensorOf: (module) => renamed(withoutPrefix(module), byModule),
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

export function noTensor(module: string, { architecture }: GgufNames): MismatchError {
  return new MismatchError({
    where: module,
    what: `llama.cpp has no tensor for this module in models of the architecture ${architecture}`,
    hint: 'Check that `base` is the model that the adapter was trained on',
  })
}
