// Adapter files for ONNX Runtime's own LoRA, with Olive's names: A is (k, r), B is (r, d) and includes the scaling.

import { type ByteSink, writeThrough } from '../base/bytes.js'
import { encodeFloats } from '../base/dtype.js'
import { ConfigError } from '../base/errors.js'
import { Steps } from '../base/progress.js'
import { type Matrix, transpose } from '../base/tensor.js'
import { ALL } from '../families/families.js'
import { writeOnnxAdapter } from '../formats/onnx-adapter.js'
import type { LoraAdapter } from '../lora/adapter.js'
import {
  type ExchangeFormat,
  floatDtype,
  type NamedFactors,
  requireHeld,
  type WriteSettings,
} from './exchange-format.js'

export const ONNX_ADAPTER: ExchangeFormat = {
  async write(adapter, { directory, file }, settings) {
    requireHeld(adapter, ['linear'], 'an .onnx_adapter')
    const whole = await adapter.load()
    const placed = await settings.graphFactors?.(whole)
    if (placed === undefined) refuseOtherNames(whole)
    const layers = placed ?? whole.parts('linear')
    await writeThrough(directory, file!, (sink) => writeOnnxLora(layers, sink, settings), true)
    return { layers: layers.length }
  },
}

/** Graphs split these modules, or name them otherwise: their inputs cannot be told without the graph. */
const UNLIKE_GRAPHS = new Set(
  ALL.flatMap(({ packed = {}, exported = {} }) => [...Object.keys(packed), ...Object.values(exported)]),
)

function refuseOtherNames(adapter: LoraAdapter): void {
  const endings = [...UNLIKE_GRAPHS]
  const part = adapter.parts().find(({ name }) => endings.some((end) => `.${name}`.endsWith(`.${end}`)))
  if (part === undefined) return
  throw new ConfigError({
    where: 'base',
    what: `graphs split ${part.name} or name it otherwise, and the file must have the names of the graph's inputs`,
    expected: 'the folder that lowrank lora-inputs wrote, or its .onnx file',
    got: 'no graph',
  })
}

async function writeOnnxLora(parts: readonly NamedFactors[], sink: ByteSink, settings: WriteSettings): Promise<void> {
  const steps = new Steps(parts.length, settings)
  const tensors = parts.flatMap(({ name, weightA, weightB, scaling, dtype }) => {
    const type = floatDtype(settings.dtype, dtype)
    const [[r, k], [d]] = [weightA.shape, weightB.shape]
    const tensor = (suffix: string, shape: readonly number[], matrix: Matrix, factor: number) => ({
      name: `${name}.${suffix}.weight`,
      shape,
      dtype: type,
      data: () =>
        encodeFloats(
          Float32Array.from(transpose(matrix).data, (value) => factor * value),
          type,
        ),
    })
    return [tensor('lora_A', [k, r], weightA, 1), tensor('lora_B', [r, d], weightB, scaling)]
  })
  await writeOnnxAdapter(sink, tensors, async (name) => {
    if (name.endsWith('.lora_B.weight')) await steps.next(name.slice(0, -'.lora_B.weight'.length))
  })
}
