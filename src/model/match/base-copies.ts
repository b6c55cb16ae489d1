// Recognizes copies of the base: PEFT saves an embedding or an output layer with an adapter, usually unchanged, and
// then nothing has to be replaced.

import type { FloatArray } from '../../core/base/tensor.js'
import type { ReadLines } from './forms/form.js'
import type { ModelPlaces, StoredPlace } from './stored-places.js'

/** How many elements are compared at a time: 4 MiB in f32. */
const BLOCK_ELEMENTS = 1 << 20

/** How many quantization steps a copy may be off: 16-bit scales and rounded sums can add a little to the one step. */
const STEPS = 1.01

/**
 * True if each value equals the base's, or is within one step of a quantized base. `read` reads lines of the adapter's
 * tensor: (d, k), or (k, d) with `isInputMajor`.
 */
export async function isBaseCopy(
  { model, graph }: Pick<ModelPlaces, 'model' | 'graph'>,
  { linear, isInputMajor }: Extract<StoredPlace, { kind: 'weight' }>,
  read: (first: number, count: number) => Promise<FloatArray> | FloatArray,
): Promise<boolean> {
  const { form, transposed, k, d, problem } = linear
  if (problem !== undefined) return false
  const base: ReadLines = await form.openLines(model, graph, linear)
  const steps = await form.openSteps?.(model, graph, linear)
  const [lines, width] = transposed ? [d, k] : [k, d]
  const whole = isInputMajor === transposed ? await read(0, width) : undefined
  const most = Math.max(1, Math.floor(BLOCK_ELEMENTS / width))
  for (let first = 0; first < lines; first += most) {
    const count = Math.min(most, lines - first)
    const [values, distances] = [await base(first, count), await steps?.(first, count)]
    const copy = whole ?? (await read(first, count))
    for (let i = 0; i < values.length; i++) {
      const at = whole === undefined ? i : (i % width) * lines + first + Math.floor(i / width)
      const step = distances === undefined ? 0 : STEPS * distances[i]
      if (!(Math.abs(values[i] - copy[at]) <= step)) return false
    }
  }
  return true
}
