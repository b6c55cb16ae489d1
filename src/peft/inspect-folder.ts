// Inspects an adapter on disk, a layer in memory at a time. Unlike loading it goes on after a problem, so that all of them are
// known at once.

import type { Directory } from '../base/bytes.js'
import { decodeWeights, isWeightDtype } from '../base/dtype.js'
import { LowrankError } from '../base/errors.js'
import { isAllFinite } from '../base/tensor.js'
import { readTensorF32, type SafetensorsFile, type TensorInfo } from '../formats/safetensors.js'
import { notFinite } from '../lora/factors.js'
import { trainableParams } from '../lora/part.js'
import { commonDtype, type LoadOptions, openAdapter } from './adapter-folder.js'
import {
  type AdapterReport,
  adapterReport,
  type LayerReport,
  layerReport,
  type ReplacementReport,
  replacementReport,
} from './inspect.js'
import type { FilePart } from './tensors.js'

/** Tensors that are only looked through are read in pieces of so many bytes. */
const PIECE_BYTES = 1 << 22

/**
 * What loading the folder would find, and everything that it would refuse, in `problems`.
 *
 * @throws FileError when a file is missing; FormatError when a file cannot be read at all; ConfigError when a value of the
 *   config is out of range; UnsupportedError for another method than LoRA
 */
export async function inspectAdapterFolder(directory: Directory, options: LoadOptions = {}): Promise<AdapterReport> {
  const adapter = await openAdapter(directory, { ...options, isTolerant: true })
  try {
    const { config, file, notes } = adapter
    const problems = [...adapter.problems]
    const layers: LayerReport[] = []
    const replacements: ReplacementReport[] = []
    for (const part of adapter.parts()) {
      if (part.kind === 'replacement' || part.kind === 'token-rows') {
        problems.push(...(await valueProblems(file, part.tensors.weight)))
        replacements.push(replacementReport(part, part.tensors.weight.dtype))
        continue
      }
      const { report, ...found } = await inspectLayer(file, part)
      problems.push(...found.problems)
      if (report !== undefined) layers.push(report)
    }
    return adapterReport({
      config,
      trainableParams: adapter.parts().reduce((sum, part) => sum + trainableParams(part), 0),
      layers,
      replacements,
      problems,
      notes,
    })
  } finally {
    await adapter.close()
  }
}

type FileLayer = Exclude<FilePart, { kind: 'replacement' | 'token-rows' }>

/** No report where a tensor cannot be read. */
async function inspectLayer(
  file: SafetensorsFile,
  part: FileLayer,
): Promise<{ report?: LayerReport; problems: LowrankError[] }> {
  const { weightA, weightB, ...vectors } = part.tensors
  const problems: LowrankError[] = []
  try {
    const factors = {
      weightA: await readTensorF32(file, weightA.name),
      weightB: await readTensorF32(file, weightB.name),
    }
    for (const [info, { data }] of [
      [weightA, factors.weightA],
      [weightB, factors.weightB],
    ] as const) {
      if (!isAllFinite(data)) problems.push(notFinite(`${file.source.name}: ${info.name}`))
    }
    for (const info of Object.values(vectors)) {
      if (info !== undefined) problems.push(...(await valueProblems(file, info)))
    }
    return { report: layerReport(part, factors, commonDtype(part)), problems }
  } catch (error) {
    if (!(error instanceof LowrankError)) throw error
    return { problems: [...problems, error] }
  }
}

/** Tells of a tensor with a value that is not finite. Tensors of integers have none. */
async function valueProblems({ source }: SafetensorsFile, info: TensorInfo): Promise<LowrankError[]> {
  const { dtype, offset, byteLength, name } = info
  if (!isWeightDtype(dtype)) return []
  for (let done = 0; done < byteLength; done += PIECE_BYTES) {
    const bytes = await source.read(offset + done, Math.min(PIECE_BYTES, byteLength - done))
    if (!isAllFinite(decodeWeights(bytes, dtype))) return [notFinite(`${source.name}: ${name}`)]
  }
  return []
}
