// Between the tensors of an adapter and what the training graph is fed: A (r, k) as it is, B (d, r) as Bᵀ (r, d),
// DoRA's m (d), tensors of a head and rows of tokens as they are. LoRA+ changes the rates of some of them.

import { transpose } from '../../core/base/tensor.js'
import type { LoraAdapter } from '../../lora/adapter.js'
import type { EngineState } from './engine.js'

interface Slot {
  read(): Float32Array
  write(values: Float32Array): void
}

export function readParameters(adapter: LoraAdapter, names: readonly string[]): Float32Array[] {
  const slots = slotsOf(adapter)
  return names.map((name) => slots.get(name)!.read())
}

/** The state of an optimizer before its first step. */
export function startOf(adapter: LoraAdapter, names: readonly string[]): EngineState {
  const parameters = readParameters(adapter, names)
  const moments = () => parameters.map(({ length }) => new Float32Array(length))
  return { parameters, firstMoments: moments(), secondMoments: moments(), updates: 0 }
}

export function writeParameters(adapter: LoraAdapter, names: readonly string[], values: readonly Float32Array[]): void {
  const slots = slotsOf(adapter)
  names.forEach((name, i) => void slots.get(name)!.write(values[i]))
}

function slotsOf(adapter: LoraAdapter): Map<string, Slot> {
  const slots = new Map<string, Slot>()
  for (const part of adapter.parts('linear', 'embedding')) {
    const layer = part.kind === 'embedding' ? part.product : part
    const { name } = layer
    slots.set(`${name}.A`, {
      read: () => Float32Array.from(layer.weightA.data),
      write: (values) => {
        layer.weightA = { data: values.slice(), shape: [layer.rank, layer.k] }
      },
    })
    slots.set(`${name}.B`, {
      read: () => Float32Array.from(transpose(layer.weightB).data),
      write: (values) => {
        layer.weightB = transpose({ data: values, shape: [layer.rank, layer.d] })
      },
    })
    const { magnitude } = layer
    if (magnitude === undefined) continue
    slots.set(`${name}.magnitude`, {
      read: () => Float32Array.from(magnitude),
      write: (values) => void layer.magnitude?.set(values),
    })
  }
  for (const { name, weightA, weightB } of adapter.parts('parameter')) {
    const [columns, d] = [weightB.shape[1], weightB.shape[0]]
    slots.set(`${name}.A`, {
      read: () => Float32Array.from(weightA.data),
      write: (values) => weightA.data.set(values),
    })
    slots.set(`${name}.B`, {
      read: () => Float32Array.from(transpose(weightB).data),
      write: (values) => weightB.data.set(transpose({ data: values, shape: [columns, d] }).data),
    })
  }
  for (const part of adapter.parts('replacement', 'token-rows')) {
    slots.set(part.name, {
      read: () => Float32Array.from(part.weight.data),
      write: (values) => void part.weight.data.set(values),
    })
  }
  return slots
}

/** Factors of the learning rates for LoRA+: as in PEFT, B and vectors learn `ratio` times as fast. */
export function loraPlusRates(
  parameters: readonly { readonly name: string; readonly shape: readonly number[] }[],
  ratio = 1,
): number[] {
  return parameters.map(({ name, shape }) => (name.endsWith('.B') || shape.length === 1 ? ratio : 1))
}
