// Adapter files for ONNX Runtime's own LoRA, with Olive's names: A is (k, r), B is (r, d) and includes the scaling.

import { type ByteSink, type ByteSource, withSource, writeThrough } from '../base/bytes.js'
import { decodeFloats, encodeFloats, type FloatDtype } from '../base/dtype.js'
import { ConfigError, FormatError } from '../base/errors.js'
import { Steps } from '../base/progress.js'
import { isAllFinite, type Matrix, transpose } from '../base/tensor.js'
import { ALL } from '../families/families.js'
import { isOnnxAdapter, parseOnnxAdapter, writeOnnxAdapter } from '../formats/onnx-adapter.js'
import type { LoraAdapter } from '../lora/adapter.js'
import { notFinite } from '../lora/part.js'
import { openAdapter } from '../peft/open.js'
import {
  type ExchangeFormat,
  floatDtype,
  type NamedFactors,
  requireHeld,
  startsWith,
  type WriteSettings,
} from './exchange-format.js'
import { adapterOf, pairedLayer, type ReadLayer } from './read-layers.js'

export const ONNX_ADAPTER: ExchangeFormat = {
  detect: (place) => startsWith(place, isOnnxAdapter),
  open: ({ directory, file }) =>
    withSource(directory, file!, async (source) => openAdapter(await readOnnxLora(source))),
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

async function readOnnxLora(source: ByteSource): Promise<LoraAdapter> {
  const halves = new Map<string, { A?: Matrix; B?: Matrix; dtype: FloatDtype }>()
  for (const { name, shape, dtype, offset, byteLength } of await parseOnnxAdapter(source)) {
    const where = `${source.name}: ${name}`
    const [, module, half] = /^(.+)\.lora_([AB])\.weight$/.exec(name) ?? []
    if (module === undefined || shape.length !== 2) {
      throw new FormatError({
        where,
        what: 'not a factor of a layer',
        expected: 'MODULE.lora_A.weight or MODULE.lora_B.weight, a matrix',
      })
    }
    const data = decodeFloats(await source.read(offset, byteLength), dtype)
    if (!isAllFinite(data)) throw notFinite(where)
    const matrix = transpose({ data, shape: [shape[0], shape[1]] })
    halves.set(module, { ...halves.get(module), [half]: matrix, dtype })
  }
  const layers = [...halves].map(([name, { A, B, dtype }]): ReadLayer => {
    return pairedLayer({ name, kind: 'linear', scaling: 1, dtype }, { a: A, b: B }, source.name)
  })
  if (layers.length > 0) return adapterOf(layers, {})
  throw new FormatError({ where: source.name, what: 'an adapter without a single tensor' })
}
