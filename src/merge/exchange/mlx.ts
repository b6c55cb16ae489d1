// Adapters of mlx-lm (mlx_lm/tuner/lora.py, dora.py, utils.py): adapters.safetensors, and an adapter_config.json in
// mlx-lm's own form. All layers have the same rank and the same scale, which is the scaling itself and not alpha/r. A
// is stored as (k, r), B as (r, d).

import { type Directory, type Place, readJson, withSource, writeFile } from '../../core/base/bytes.js'
import { encodeFloats, type FloatDtype, isFloatDtype } from '../../core/base/dtype.js'
import { FormatError, UnsupportedError } from '../../core/base/errors.js'
import { objectOf } from '../../core/base/options.js'
import { Steps } from '../../core/base/progress.js'
import {
  type FloatArray,
  formatShape,
  isAllFinite,
  type Matrix,
  type Tensor,
  transpose,
  transposeAs,
} from '../../core/base/tensor.js'
import { parseSafetensorsHeader, readTensorF32, saveSafetensors, type TensorBytes } from '../../files/safetensors.js'
import { LoraAdapter } from '../../lora/adapter.js'
import { resolveConfig, scalingOf } from '../../lora/config.js'
import { padded, scaled } from '../../lora/delta.js'
import { type FactorTensors, type FactorView, notFinite } from '../../lora/part.js'
import type { AdapterTensor } from '../../lora/peft/keys.js'
import { type OpenAdapter, openAdapter } from '../../lora/peft/open.js'
import { type ExchangeFormat, floatDtype, requireHeld, type WriteSettings, type Written } from './exchange-format.js'

const MLX_CONFIG = 'adapter_config.json'
const MLX_WEIGHTS = 'adapters.safetensors'

export const MLX: ExchangeFormat = { write: writeMlx }

/** Opens an adapter of mlx-lm. Returns undefined if the folder is not one. */
export async function openMlx(directory: Directory): Promise<OpenAdapter | undefined> {
  if (!(await directory.has(MLX_CONFIG)) || !(await directory.has(MLX_WEIGHTS))) return undefined
  const config = objectOf(await readJson(directory, MLX_CONFIG))
  if (!('lora_parameters' in config || 'fine_tune_type' in config)) return undefined
  return openAdapter(await readMlx(directory, config))
}

/** Writes the config last, so that an interrupted call leaves nothing that looks like an adapter. */
async function writeMlx(adapter: OpenAdapter, { directory }: Place, settings: WriteSettings): Promise<Written> {
  requireHeld(adapter, ['linear', 'embedding', 'magnitude'], 'an mlx-lm adapter')
  const parts = adapter.parts() as readonly FactorView<AdapterTensor>[]
  const embedding = parts.find(({ kind, tensors }) => kind === 'embedding' && tensors.magnitude !== undefined)
  if (embedding !== undefined) {
    throw new UnsupportedError({
      where: embedding.name,
      what: 'an mlx-lm adapter cannot hold magnitudes of an embedding',
    })
  }
  const rank = Math.max(...parts.map(({ config }) => config.rank))
  const first = scalingOf(parts[0].config)
  const isUniform = parts.every(({ config }) => scalingOf(config) === first)
  const steps = new Steps(parts.length, settings)
  const tensors: TensorBytes[] = []
  for (const part of parts) {
    const { name, config } = part
    const { weightA, weightB, magnitude } = (await adapter.read(name)).tensors as FactorTensors<Tensor<FloatArray>>
    const type = floatDtype(settings.dtype, adapter.dtypeOf(part))
    const { weightA: a, weightB: b } = padded(
      { weightA: matrixOf(weightA), weightB: scaled(matrixOf(weightB), isUniform ? 1 : scalingOf(config)) },
      rank,
    )
    const turned = (suffix: string, { data, shape: [d, k] }: Matrix) =>
      tensor(suffix, [k, d], transposeAs({ data, shape: [d, k] }, F32).data as Float32Array)
    const tensor = (suffix: string, shape: number[], data: Float32Array): TensorBytes => {
      return { name: `${name}.${suffix}`, dtype: type, shape, data: encodeFloats(data, type) }
    }
    tensors.push(turned('lora_a', a), turned('lora_b', b))
    if (magnitude !== undefined) tensors.push(tensor('m', [...magnitude.shape], Float32Array.from(magnitude.data)))
    await steps.next(name)
  }
  const hasDora = parts.some(({ tensors: { magnitude } }) => magnitude !== undefined)
  const config = {
    ...(adapter.config.baseModel !== undefined && { model: adapter.config.baseModel }),
    fine_tune_type: hasDora ? 'dora' : 'lora',
    // In mlx-lm, −1 means all layers.
    num_layers: -1,
    lora_parameters: {
      rank,
      scale: isUniform ? first : 1,
      dropout: adapter.config.dropout,
      keys: [...new Set(parts.map(({ name }) => /^model\.layers\.\d+\.(.+)$/.exec(name)?.[1] ?? name))].sort(),
    },
  }
  await directory.remove(MLX_CONFIG)
  await saveSafetensors(directory, MLX_WEIGHTS, tensors, { format: 'mlx' })
  await writeFile(directory, MLX_CONFIG, `${JSON.stringify(config, null, 4)}\n`)
  const notes = [
    ...(isUniform ? [] : ['layers have different scalings: they are multiplied into lora_b, and scale is 1']),
    ...(parts.every(({ config: layer }) => layer.rank === rank)
      ? []
      : [`layers have different ranks: all get ${rank}, with zeros`]),
  ]
  return { layers: parts.length, notes }
}

const F32 = new Float32Array()

function matrixOf({ data, shape }: Tensor<FloatArray>): Matrix {
  return { data, shape: [shape[0], shape[1]] }
}

async function readMlx(directory: Directory, config: Record<string, unknown>): Promise<LoraAdapter> {
  const where = `${directory.name}/${MLX_CONFIG}`
  const kind = config.fine_tune_type ?? 'lora'
  if (kind !== 'lora' && kind !== 'dora') {
    throw new UnsupportedError({
      where: `${where}: fine_tune_type`,
      what: 'not LoRA',
      expected: 'lora or dora',
      got: String(kind),
    })
  }
  const { scale } = (config.lora_parameters ?? {}) as { scale?: unknown }
  if (typeof scale !== 'number' || !Number.isFinite(scale)) {
    throw new FormatError({
      where: `${where}: lora_parameters.scale`,
      what: 'missing, or not a finite number',
      got: String(scale),
    })
  }
  return withSource(directory, MLX_WEIGHTS, async (source) => {
    const file = await parseSafetensorsHeader(source)
    const found = new Map<string, Map<string, { matrix: Matrix; dtype: FloatDtype }>>()
    for (const { name, shape, dtype } of file.tensors.values()) {
      const [, module, role] = /^(.+)\.(lora_a|lora_b|m)$/.exec(name) ?? []
      if (module === undefined || shape.length !== (role === 'm' ? 1 : 2) || !isFloatDtype(dtype)) {
        throw new UnsupportedError({
          where: `${source.name}: ${name}`,
          what: 'not a factor of a linear layer or an embedding',
          got: `${dtype} ${formatShape(shape)}`,
        })
      }
      const { data } = await readTensorF32(file, name)
      if (!isAllFinite(data)) throw notFinite(`${source.name}: ${name}`)
      const matrix: Matrix = { data, shape: role === 'm' ? [1, shape[0]] : [shape[0], shape[1]] }
      found.set(module, (found.get(module) ?? new Map()).set(role, { matrix, dtype }))
    }
    const roles = kind === 'dora' ? ['lora_a', 'lora_b', 'm'] : ['lora_a', 'lora_b']
    const layers = [...found].map(([name, tensors]) => {
      const missing = roles.find((role) => !tensors.has(role))
      if (missing !== undefined) {
        throw new FormatError({ where: `${source.name}: ${name}`, what: `half a layer: no ${missing}` })
      }
      const [a, b, m] = roles.map((role) => tensors.get(role)!.matrix)
      const magnitude = m && { data: m.data, shape: [m.data.length] }
      return {
        ...{ name, module: name, dtype: tensors.get('lora_b')!.dtype },
        kind: /(^|\.)(embed_tokens|wte|tok_embeddings)$/.test(name) ? ('embedding' as const) : ('linear' as const),
        tensors: { weightA: transpose(a), weightB: transpose(b), magnitude },
      }
    })
    if (layers.length === 0) throw new FormatError({ where: source.name, what: 'an adapter without a single tensor' })
    const [rank] = layers[0].tensors.weightA.shape
    const adapter = new LoraAdapter(
      resolveConfig({
        ...(typeof config.model === 'string' && config.model !== '' && { baseModel: config.model }),
        init: 'kaiming-uniform',
        rank,
        alpha: scale * rank,
        // The last parts of the names, as in PEFT's target_modules.
        targetModules: [...new Set(layers.map(({ name }) => name.slice(name.lastIndexOf('.') + 1)))].sort(),
        useDora: kind === 'dora',
      }),
    )
    for (const layer of layers) adapter.addPart({ ...layer, config: adapter.config })
    return adapter
  })
}
