// Merges adapters into an ONNX model: a new model whose weights hold W + Σ w·s·B·A, of the same types, which runs anywhere
// without LoRA inputs. Weights stream from the old file to the new one.

import { type Directory, writeFile } from '../../base/bytes.js'
import { MismatchError, UnsupportedError } from '../../base/errors.js'
import type { OnnxModel } from '../../formats/onnx/model.js'
import { byteLengthOf, dimsOf } from '../../formats/onnx/tensors.js'
import { type WeightWriter, writeOnnx } from '../../formats/onnx/write.js'
import type { ModuleMap } from '../../graph/match/linears.js'
import { referenceKernels } from '../../kernels/reference.js'
import { LoraAdapter } from '../../lora/adapter.js'
import { loadAdapter } from '../../peft/adapter-folder.js'
import { requireMatched } from '../../peft/unmatched.js'
import { resultTemplate } from '../chunks/chat-template.js'
import { findCompanions, NO_COMPANIONS, writeCompanion } from '../chunks/companions.js'
import { type Config, loadConfig } from '../chunks/open-plan.js'
import { CONFIG_FILE, editConfig, headWarning } from '../plan/config-edit.js'
import type { MergeReport } from '../report.js'
import type { ExternalDataMode, RunSettings } from '../settings.js'
import { refuseBaseAsOutput, writeTogether } from '../staged.js'
import { type LayerChange, mergeWeight } from '../weight.js'
import { type AdapterInput, weighted } from '../weighted.js'
import { editForHub, type WrittenGraph } from './hub-config.js'
import { planOnnxMerge } from './plan.js'
import type { QuantizedPolicy } from './quantized.js'

/** What a merge into an ONNX model takes. */
export interface MergeOnnxOptions extends RunSettings {
  /** Where the graph goes inside `out`. Default: the base file's own name. */
  path?: string | undefined
  /** The base's folder, whose configuration and tokenizer go along. Default: none do. */
  companions?: Directory | undefined
  /** The base's config.json, which tells what heads it can have. Default: that of `companions`. */
  config?: Config | undefined
  /** A checkpoint beside it writes config.json. Default false. */
  isBesideCheckpoint?: boolean | undefined
  /** Module name → name of the node or of its weight, where the graph's own names do not tell. */
  modules?: ModuleMap | undefined
  /** Refuses adapters whose config has targets or patterns that match nothing of them. Default false. */
  strict?: boolean | undefined
  /** The same bytes on every machine: the products are plain loops, which take longer. Default false. */
  reproducible?: boolean | undefined
  /** What happens to quantized weights. Default `branches`. */
  quantized?: QuantizedPolicy | undefined
  /** How data files that stay as they are come into the output. Default `copy`. */
  externalData?: ExternalDataMode | undefined
  /** Type of the factors of branches. Default: the one in which each layer computes. */
  factors?: 'fp32' | 'fp16' | undefined
  /** Takes branches out; the adapters' weights have the other sign. Default false. */
  isUnmerge?: boolean | undefined
  /** Tells transformers.js in config.json of the graph's type and data files. Default true. */
  writesConfig?: boolean | undefined
}

/** A merge into an ONNX model that is planned, and can be written. */
export interface OpenOnnxMerge {
  /** Of all weights. */
  readonly totalBytes: number
  /** Of the written graph. */
  readonly dataFiles: number
  /** Writes config.json with what transformers.js asks of these graphs. */
  writeConfig(out: Directory, graphs: readonly WrittenGraph[]): Promise<void>
  /** @throws NumericError naming the weight when a result is not finite; FileError when the output is the base itself */
  write(out: Directory): Promise<MergeReport>
}

/**
 * Plans the merge: what {@link mergeOnnx} throws but for values that are not finite is thrown here, and nothing is written.
 *
 * @param model stays open until the merge is written
 * @param loaded none copies the model
 */
export async function openOnnxMerge(
  model: OnnxModel,
  loaded: readonly WeightedOnnx[],
  options: MergeOnnxOptions = {},
): Promise<OpenOnnxMerge> {
  const startedAt = performance.now()
  const { path = model.fileName, companions: folder, modules, reproducible = false } = options
  const { quantized, factors, externalData = 'copy', isUnmerge = false, writesConfig = true } = options
  const config = options.config ?? (folder && (await loadConfig(folder)))
  const asked = { config: config?.values, modules, quantized, factors, isUnmerge }
  const plan = await planOnnxMerge(model, loaded, asked)
  const { proto, targets, added, head, branches, requantized } = plan
  if (factors !== undefined && branches.length === 0) throw noFactors()
  let dataFiles = 0
  const initializers = proto.graph?.initializer ?? []
  const own = new Set([path, ...model.files.keys()].map((name) => name.replace(/\/.*/, '/')))
  const chat = await resultTemplate(isUnmerge ? undefined : folder, loaded)
  const companions = folder === undefined ? NO_COMPANIONS : await findCompanions(folder, own, chat.template)
  const edited =
    head && config && companions.copied.includes(CONFIG_FILE)
      ? editConfig(config.bytes, { untied: [], dtype: undefined, head }, `${folder!.name}/${CONFIG_FILE}`)
      : undefined
  // Beside a checkpoint, config.json is the checkpoint's to write.
  const isTold = edited !== undefined || options.isBesideCheckpoint === true
  const warnings = [...chat.warnings, ...(head === undefined || isTold ? [] : [headWarning(head)])]
  const kernels = reproducible ? referenceKernels : undefined
  const layers: LayerChange[] = []
  const overrides = new Map<string, WeightWriter>(requantized)
  for (const [name, { target, source }] of targets) {
    const read = (offset: number, byteLength: number) => model.readPart(source, offset, byteLength)
    overrides.set(name, () => mergeWeight(target, read, (change) => layers.push(change), kernels))
  }
  const totalBytes = initializers.reduce((sum, tensor) => sum + (byteLengthOf(tensor.dataType, dimsOf(tensor)) ?? 0), 0)
  const writeConfig = async (staged: Directory, graphs: readonly WrittenGraph[]) => {
    const where = `${folder!.name}/${CONFIG_FILE}`
    await writeFile(staged, CONFIG_FILE, editForHub(edited ?? new TextDecoder().decode(config!.bytes), graphs, where))
  }
  return {
    totalBytes,
    writeConfig,
    get dataFiles() {
      return dataFiles
    },
    async write(out) {
      await refuseBaseAsOutput(out, path, model.file(model.fileName))
      const bytes = await writeTogether(out, totalBytes, options, async (staged) => {
        const written = await writeOnnx(model, proto, staged, path, {
          overrides,
          keepsFiles: branches.length > 0,
          links: externalData === 'hardlink',
        })
        dataFiles = written.dataFiles.length
        warnings.push(...written.unlinked.map(({ file, reason }) => `${file} is a copy, not a hard link: ${reason}`))
        for (const name of companions.copied) {
          if (name === CONFIG_FILE) await (writesConfig && writeConfig(staged, [{ path, dataFiles }]))
          else await writeCompanion(folder!, name, staged, companions)
        }
        layers.push(...(await plan.changes()))
        return staged.writtenBytes
      })
      return {
        out: `${out.name}/${path}`,
        format: 'onnx',
        tensors: initializers.length,
        changed: targets.size + requantized.size,
        ...(branches.length > 0 && { branches: branches.length }),
        added: [...added],
        renamed: [],
        bytes,
        seconds: (performance.now() - startedAt) / 1000,
        layers: inOrder(layers, loaded),
        copied: [...companions.copied],
        leftOut: [...companions.leftOut],
        warnings,
      }
    },
  }
}

/**
 * Writes the model with W + Σ weight · s·B·A in the place of each adapted weight, of linear layers and embeddings, rounded once;
 * DoRA's scales, biases, replaced tensors and rows of tokens go along. Its files appear together when all is done.
 *
 * An embedding or a head that an adapter changes alone gets a tensor of its own where the two are tied, as in PEFT.
 *
 * @param adapters one, or several that are added up
 * @param sign −1 to unmerge
 * @throws MismatchError when an adapter does not fit; UnsupportedError naming the node when a weight cannot be merged into, the
 *   tensor when none in the graph is certain to be it, the part when it is no sum and would be weighted or combined; ConfigError
 *   when a weight is not valid; NumericError naming the weight when a result is not finite; FileError when the output is the
 *   base itself; nothing is left of the output then
 */
export async function mergeOnnx(
  model: OnnxModel,
  adapters: AdapterInput | readonly AdapterInput[],
  out: Directory,
  options: MergeOnnxOptions = {},
  sign: 1 | -1 = 1,
): Promise<MergeReport> {
  return (
    await openOnnxMerge(model, await loadAdapters(adapters, sign, options), { ...options, isUnmerge: sign === -1 })
  ).write(out)
}

function noFactors(): UnsupportedError {
  return new UnsupportedError({
    where: 'outDtype',
    what: 'the types of an .onnx file stay as they are; only factors beside quantized weights have a type of their own',
    got: "a result in the format 'onnx'",
    hint: 'Leave it out: the adapters have no quantized weights here',
  })
}

/** An adapter, and how much of it is merged. */
export interface WeightedOnnx {
  readonly adapter: LoraAdapter
  readonly weight: number
}

/** Reads the adapters that are folders. Throws MismatchError when there is none. */
export async function loadAdapters(
  inputs: AdapterInput | readonly AdapterInput[],
  sign: 1 | -1,
  { strict = false }: Pick<MergeOnnxOptions, 'strict'>,
): Promise<WeightedOnnx[]> {
  const result: WeightedOnnx[] = []
  for (const [i, input] of (isList(inputs) ? inputs : [inputs]).entries()) {
    const { adapter, weight } = weighted(input, i)
    const loaded = adapter instanceof LoraAdapter ? adapter : await loadAdapter(adapter)
    if (strict) requireMatched(loaded, `adapter ${i + 1}`)
    result.push({ adapter: loaded, weight: sign * weight })
  }
  if (result.length === 0) throw new MismatchError({ where: 'adapters', what: 'there is no layer to merge' })
  return result
}

function isList(inputs: AdapterInput | readonly AdapterInput[]): inputs is readonly AdapterInput[] {
  return Array.isArray(inputs)
}

/** One entry a layer, in the adapters' order: equal weights of several nodes change alike. */
function inOrder(changes: readonly LayerChange[], adapters: readonly { adapter: LoraAdapter }[]): LayerChange[] {
  const byName = new Map(changes.map((change) => [change.name, change]))
  const names = adapters.flatMap(({ adapter }) => adapter.names())
  // A module that the graph computes as several has its parts' names there.
  return [...new Set([...names, ...byName.keys()])].flatMap((name) => byName.get(name) ?? [])
}
