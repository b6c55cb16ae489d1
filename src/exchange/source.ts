// An adapter that is converted: in memory, or in PEFT's folder, whose tensors are read when their turn comes.

import type { FloatDtype } from '../base/dtype.js'
import { isFloatDtype } from '../base/dtype.js'
import type { Matrix } from '../base/tensor.js'
import type { TensorInfo } from '../formats/safetensors.js'
import type { LoraAdapter } from '../lora/adapter.js'
import { type LoraConfig, scalingOf } from '../lora/config.js'
import type { PartView } from '../lora/part.js'
import { type AdapterFile, commonDtype, readFactor, readStored } from '../peft/adapter-folder.js'

/** A or B of a part, without its values. */
export interface SourceFactor {
  readonly shape: readonly number[]
  /** Its values. Throws NumericError when one is not finite. */
  read(): Promise<Matrix>
  /** Its bytes as the file has them, in `memory` where they can be there; undefined in memory. Throws as `read`. */
  readonly stored?: { readonly dtype: FloatDtype; read(memory?: Uint8Array): Promise<Uint8Array> } | undefined
}

/** A part that is a product of two matrices; of experts, a stack of them. */
export interface FactorPart {
  readonly kind: 'linear' | 'embedding' | 'parameter'
  readonly name: string
  readonly scaling: number
  readonly dtype: FloatDtype
  readonly weightA: SourceFactor
  readonly weightB: SourceFactor
  /** 1 where the part is no stack of experts. */
  readonly experts: number
}

/** An adapter that is converted. */
export interface SourceAdapter {
  readonly config: LoraConfig
  parts(): readonly PartView[]
  /** The parts with factors, but convolutions. */
  factors(): readonly FactorPart[]
}

/** An adapter in memory. */
export function inMemory(adapter: LoraAdapter): SourceAdapter {
  const factor = (matrix: Matrix): SourceFactor => ({ shape: matrix.shape, read: async () => matrix })
  return {
    config: adapter.config,
    parts: () => adapter.parts() as unknown as PartView[],
    factors: () =>
      adapter.parts('linear', 'embedding', 'parameter').map((part) => ({
        kind: part.kind,
        name: part.name,
        scaling: part.scaling,
        dtype: part.dtype,
        weightA: factor(part.weightA),
        weightB: factor(part.weightB),
        experts: part.kind === 'parameter' ? part.experts : 1,
      })),
  }
}

/** An open folder, which stays the caller's to close. */
export function inFolder(opened: AdapterFile): SourceAdapter {
  const factor = (info: TensorInfo): SourceFactor => ({
    shape: info.shape,
    async read() {
      const { data, shape } = await readFactor(opened.file, info)
      return { data, shape: [shape[0], shape[1]] }
    },
    stored: isFloatDtype(info.dtype)
      ? { dtype: info.dtype, read: async (memory) => (await readStored(opened.file, info, memory)).data }
      : undefined,
  })
  return {
    config: opened.config,
    parts: () => opened.parts(),
    factors: () =>
      opened.parts().flatMap((part): FactorPart[] => {
        if (part.kind !== 'linear' && part.kind !== 'embedding' && part.kind !== 'parameter') return []
        const { kind, name, config, tensors } = part
        const [weightA, weightB] = [factor(tensors.weightA), factor(tensors.weightB)]
        const experts = part.kind === 'parameter' ? part.experts : 1
        return [{ kind, name, scaling: scalingOf(config), dtype: commonDtype(part), weightA, weightB, experts }]
      }),
  }
}
