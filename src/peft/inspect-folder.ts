// Inspects an adapter on disk, a layer in memory at a time. Unlike loading it goes on after a problem, so that all of them are
// known at once.

import type { Directory } from '../base/bytes.js'
import { decodeWeights, isWeightDtype } from '../base/dtype.js'
import { LowrankError, type OnProblem } from '../base/errors.js'
import { elementCount, isAllFinite, type Tensor } from '../base/tensor.js'
import { readTensorF32, type SafetensorsFile, type TensorInfo } from '../formats/safetensors.js'
import { notFinite } from '../lora/factors.js'
import { type AdapterFile, commonDtype, type LoadOptions, openAdapter } from './adapter-folder.js'
import { type AdapterReport, adapterReport, type LayerReport, layerReport, replacementReports } from './inspect.js'
import type { LayerTensors } from './tensors.js'

/** Tensors that are only looked through are read in pieces of so many bytes. */
const PIECE_BYTES = 1 << 22

/**
 * What loading the folder would find, and everything that it would refuse, in `problems`.
 *
 * @throws FileError when a file is missing; FormatError when a file cannot be read at all; ConfigError when a value of the
 *   config is out of range; UnsupportedError for another method than LoRA
 */
export async function inspectAdapterFolder(directory: Directory, options: LoadOptions = {}): Promise<AdapterReport> {
  const problems: LowrankError[] = []
  const onProblem: OnProblem = (problem) => problems.push(problem)
  const adapter = await openAdapter(directory, onProblem, options)
  try {
    const { config, file, replacements, tokenRows } = adapter
    const layers: LayerReport[] = []
    const parameters = adapter.parameters.map((tensors): ReportedTensors => ({ kind: 'parameter', ...tensors }))
    for (const tensors of [...adapter.layers, ...parameters]) {
      const report = await inspectLayer(file, tensors, onProblem)
      if (report !== undefined) layers.push(report)
    }
    for (const { info } of [...replacements.values(), ...tokenRows.values()]) await checkValues(file, info, onProblem)
    return adapterReport({
      config,
      trainableParams: countParams(adapter),
      layers,
      replacements: replacementReports(
        [...replacements].map(([name, { info }]) => [name, info]),
        [...tokenRows].map(([module, { info, indices }]) => [module, { ...info, indices }]),
      ),
      problems,
      notes: adapter.notes,
    })
  } finally {
    await adapter.close()
  }
}

/** The tensors of a layer of any kind. */
type ReportedTensors = Pick<LayerReport, 'kind' | 'experts'> &
  Pick<LayerTensors, 'name' | 'config' | 'A' | 'B'> &
  Partial<Pick<LayerTensors, 'magnitude' | 'biasB'>>

async function inspectLayer(
  file: SafetensorsFile,
  { name, kind, config, experts, A, B, magnitude, biasB }: ReportedTensors,
  onProblem: OnProblem,
): Promise<LayerReport | undefined> {
  try {
    const [weightA, weightB] = [await readFactor(file, A, onProblem), await readFactor(file, B, onProblem)]
    for (const info of [magnitude, biasB]) if (info !== undefined) await checkValues(file, info, onProblem)
    return layerReport({
      name,
      kind,
      config,
      dtype: commonDtype({ A, B, magnitude, biasB }),
      weightA,
      weightB,
      experts,
      hasMagnitude: magnitude !== undefined,
      hasBias: biasB !== undefined,
    })
  } catch (error) {
    if (!(error instanceof LowrankError)) throw error
    onProblem(error)
    return undefined
  }
}

async function readFactor(file: SafetensorsFile, info: TensorInfo, onProblem: OnProblem): Promise<Tensor> {
  const tensor = await readTensorF32(file, info.name)
  if (!isAllFinite(tensor.data)) onProblem(notFinite(`${file.source.name}: ${info.name}`))
  return tensor
}

/** Tells of a tensor with a value that is not finite. Tensors of integers have none. */
async function checkValues({ source }: SafetensorsFile, info: TensorInfo, onProblem: OnProblem): Promise<void> {
  const { dtype, offset, byteLength, name } = info
  if (!isWeightDtype(dtype)) return
  for (let done = 0; done < byteLength; done += PIECE_BYTES) {
    const bytes = await source.read(offset + done, Math.min(PIECE_BYTES, byteLength - done))
    if (isAllFinite(decodeWeights(bytes, dtype))) continue
    onProblem(notFinite(`${source.name}: ${name}`))
    return
  }
}

/** As {@link LoraAdapter.totalTrainableParams}. */
function countParams({ layers, parameters, replacements, tokenRows }: AdapterFile): number {
  const infos = [
    ...layers.flatMap(({ config, A, B, magnitude, biasB }) => {
      return [A, config.init === 'mica' ? undefined : B, magnitude, biasB] // MiCA's B stays as it is
    }),
    ...parameters.flatMap(({ A, B }) => [A, B]),
    ...[...replacements.values()].map(({ isTrained, info }) => (isTrained ? info : undefined)),
    ...[...tokenRows.values()].map(({ info }) => info),
  ]
  return infos.reduce((sum, info) => sum + (info === undefined ? 0 : elementCount(info.shape)), 0)
}
