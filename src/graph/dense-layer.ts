// Reads a Dense module of sentence-transformers, which changes the vector of a text.

import { type Directory, readJsonIfThere, withSource } from '../base/bytes.js'
import { UnsupportedError } from '../base/errors.js'
import { objectOf } from '../base/options.js'
import type { Tensor } from '../base/tensor.js'
import { parseSafetensorsHeader, readTensorF32 } from '../formats/safetensors.js'

/** y = activation(W·x + b), with x or R·x added if there is a residual. */
export interface DenseLayer {
  /** (d, k) */
  readonly weight: Tensor
  readonly bias: Tensor | undefined
  readonly activation: (value: number) => number
  /** The weight of a residual connection; `true` adds the input itself. */
  readonly residual: Tensor | boolean
}

const ACTIVATIONS: Readonly<Record<string, (value: number) => number>> = {
  Identity: (value) => value,
  Tanh: Math.tanh,
  ReLU: (value) => Math.max(0, value),
  Sigmoid: (value) => 1 / (1 + Math.exp(-value)),
}

export async function openDense(directory: Directory, path: string): Promise<DenseLayer> {
  const where = `${directory.name}/${path}`
  const config = objectOf(await readJsonIfThere(directory, `${path}/config.json`))
  const activation = String(config.activation_function ?? 'Tanh').replace(/^.*\./, '')
  const known = Object.hasOwn(ACTIVATIONS, activation) ? ACTIVATIONS[activation] : undefined
  const refuse = (what: string, expected: string, got: string) => new UnsupportedError({ where, what, expected, got })
  if (known === undefined)
    throw refuse(
      'the activation of this Dense module is not implemented',
      Object.keys(ACTIVATIONS).join(', '),
      activation,
    )
  const input = config.module_input_name ?? 'sentence_embedding'
  if (input !== 'sentence_embedding' || (config.module_output_name ?? input) !== input)
    throw refuse('a Dense module of token vectors is not implemented', 'sentence_embedding', String(input))
  const hasFile = await directory.has(`${path}/model.safetensors`)
  if (!hasFile) throw refuse('this Dense module has no weights', 'model.safetensors', 'no such file')
  return withSource(directory, `${path}/model.safetensors`, async (source) => {
    const file = await parseSafetensorsHeader(source)
    const read = (name: string) => readTensorF32(file, name)
    const isWide = file.tensors.has('residual.weight')
    return {
      weight: await read('linear.weight'),
      bias: file.tensors.has('linear.bias') ? await read('linear.bias') : undefined,
      activation: known,
      residual: isWide ? await read('residual.weight') : config.use_residual === true,
    }
  })
}
