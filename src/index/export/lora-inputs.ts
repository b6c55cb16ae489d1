// Writes a model whose graph has inputs for adapters, for the LoRA support of ONNX Runtime itself.

import type { Source, Target } from '../../base/bytes.js'
import { closing, type Directory, requireEmpty, writeThrough, writeTogether } from '../../base/bytes.js'
import { checkOptions } from '../../base/options.js'
import { planOnnx } from '../../formats/onnx/layout.js'
import type { OnnxModel } from '../../formats/onnx/model.js'
import type { DtypeChoice } from '../../graph/graph-file.js'
import { addAdapterInputs } from '../../graph/inject/adapter-inputs.js'
import { exposeProducts, findLinears } from '../../graph/match/linears.js'
import { matchTargets } from '../../graph/match/match.js'
import { Graph } from '../../graph/view/graph.js'
import { resolveConfig } from '../../lora/config.js'
import { findBaseFiles } from '../../merge/base-files.js'
import { ADD_LORA_INPUTS_OPTIONS } from '../gen/options.js'
import { loadModel } from '../model.js'
import { openTarget } from '../sources.js'

/** Options of `addLoraInputs`. */
export interface AddLoraInputsOptions {
  /**
   * The new folder for the model.
   * @flag DIR
   */
  readonly out: Target
  /** Which graph of the model: see {@link loadModel}. */
  readonly dtype?: DtypeChoice | undefined
  /**
   * The rank that all adapters must have. Default: each run chooses its rank. Some devices other than the CPU cannot do
   * that.
   * @range an integer of at least 1
   */
  readonly rank?: number | undefined
  /** Modules that adapters may change, as in {@link LoraConfig}. Default: `all-linear`. */
  readonly targetModules?: readonly string[] | string | undefined
}

/** Result of `addLoraInputs`. */
export interface LoraInputsReport {
  /** The folder that was written. */
  out: string
  /** The path of the graph in this folder. */
  graph: string
  /** Modules that adapters may change. */
  modules: string[]
  /** Names of the new inputs. */
  inputs: string[]
}

/**
 * Writes a model whose graph takes an adapter with each run, in the way of ONNX Runtime's LoRA adapters: each linear
 * layer gets the inputs NAME.lora_A.weight (k, r) and NAME.lora_B.weight (r, d), with zeros as their default. The
 * base's weights stay bit for bit. `convertAdapter` with `to: 'onnx-adapter'` writes adapters for it.
 *
 * @throws MismatchError when `targetModules` match no layer; FileError when `out` is not empty; what `loadModel` throws
 *
 * @example
 * const { inputs } = await addLoraInputs('models/union-3m', { out: 'out/with-inputs', targetModules: ['q_proj'] })
 */
export async function addLoraInputs(source: Source, options: AddLoraInputsOptions): Promise<LoraInputsReport> {
  checkOptions(options, 'addLoraInputs', ADD_LORA_INPUTS_OPTIONS)
  const { dtype, rank, targetModules = 'all-linear' } = options
  const out = openTarget(options.out, 'out')
  await requireEmpty(out)
  return closing(await loadModel(source, { dtype }), async (model) => {
    const graph = new Graph(model.onnx.proto)
    const found = matchTargets(findLinears(graph), resolveConfig({ targetModules }))
    const linears = exposeProducts(graph, found)
    const inputs = addAdapterInputs(graph, linears, rank)
    const path = model.onnxPath
    const planned = await planOnnx(model.onnx, graph.toModel(), path, { keepsFiles: true })
    const graphFolder = path.includes('/') ? `${path.slice(0, path.indexOf('/'))}/` : path
    const baseFiles = await findBaseFiles(model.directory, [graphFolder], [])
    await writeTogether(
      out,
      async (folder) => {
        for (const file of baseFiles.files) await file.write(folder)
        for (const { path: name, pieces } of planned) await writePieces(folder, name, pieces, model.onnx)
      },
      true,
    )
    return { out: out.name, graph: path, modules: [...new Set(linears.map(({ name }) => name))], inputs }
  })
}

const CHUNK_BYTES = 1 << 22

async function writePieces(
  folder: Directory,
  path: string,
  pieces: Awaited<ReturnType<typeof planOnnx>>[number]['pieces'],
  onnx: OnnxModel,
): Promise<void> {
  await writeThrough(folder, path, async (sink) => {
    for (const piece of pieces) {
      if ('bytes' in piece) await sink.write(piece.bytes)
      else if ('location' in piece) {
        const source = onnx.file(piece.location)
        for (let at = 0; at < piece.byteLength; at += CHUNK_BYTES) {
          await sink.write(await source.read(piece.from + at, Math.min(CHUNK_BYTES, piece.byteLength - at)))
        }
      }
    }
  })
}
