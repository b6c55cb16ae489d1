// A merge into the graphs of one model: a decoder alone, or encoder and decoder. An adapter spreads over them, and all that is written
// appears together.

import type { Directory } from '../../base/bytes.js'
import { LowrankError, MismatchError } from '../../base/errors.js'
import { loadOnnx, type OnnxModel } from '../../formats/onnx/model.js'
import { roleOf } from '../../graph/graph-file.js'
import { findLinears } from '../../graph/match/linears.js'
import { missingError } from '../../graph/match/match.js'
import { spreadAdapter } from '../../graph/match/spread.js'
import { Graph } from '../../graph/view/graph.js'
import type { LoraAdapter } from '../../lora/adapter.js'
import { CONFIG_FILE } from '../plan/config-edit.js'
import type { MergeReport } from '../report.js'
import { writeTogether } from '../staged.js'
import type { AdapterInput } from '../weighted.js'
import { collectEdits } from './edits.js'
import { findMergedHead } from './head.js'
import {
  loadAdapters,
  type MergeOnnxOptions,
  type OpenOnnxMerge,
  openOnnxMerge,
  type WeightedOnnx,
} from './merge-onnx.js'

/** What a merge into graphs takes. */
export interface MergeGraphsOptions extends Omit<MergeOnnxOptions, 'path' | 'isUnmerge' | 'writesConfig'> {
  /** Leaves out what no graph has a place for. Default false. */
  allowMissing?: boolean | undefined
  /** The one graph's place in the result. Default: that of the base. */
  path?: string | undefined
}

/** A merge that is planned; `close` ends it. */
export interface OpenGraphsMerge {
  write(out: Directory): Promise<MergeReport>
  close(): Promise<void>
}

/**
 * Plans the merge; nothing is written.
 *
 * @param paths the graphs inside the folder
 * @throws what {@link openOnnxMerge} throws; MismatchError naming all graphs when a layer has no module in any of them
 */
export async function openGraphsMerge(
  directory: Directory,
  paths: readonly string[],
  adapters: AdapterInput | readonly AdapterInput[],
  options: MergeGraphsOptions,
  sign: 1 | -1,
): Promise<OpenGraphsMerge> {
  const models: OnnxModel[] = []
  const close = async () => void (await Promise.all(models.map((model) => model.close())))
  try {
    for (const path of paths) models.push(await loadOnnx(directory, path))
    const loaded = await loadAdapters(adapters, sign, options)
    const { parts, warnings } = await spreadAll(models, paths, loaded, options)
    const { signal, onProgress, companions, path, ...own } = options
    const isUnmerge = sign === -1
    if (paths.length === 1) {
      const { write } = await openOnnxMerge(models[0], parts[0], { ...options, isUnmerge, path: path ?? paths[0] })
      return { write: async (out) => told(await write(out), warnings), close }
    }
    const opened: OpenOnnxMerge[] = []
    for (const [i, model] of models.entries()) {
      const copied = i === 0 ? { companions } : {}
      opened.push(
        await openOnnxMerge(model, parts[i], { ...own, ...copied, isUnmerge, writesConfig: false, path: paths[i] }),
      )
    }
    const total = opened.reduce((sum, { totalBytes }) => sum + totalBytes, 0)
    return {
      write: (out) =>
        writeTogether(out, total, { signal, onProgress }, async (staged) => {
          const reports: MergeReport[] = []
          for (const { write } of opened) reports.push(await write(staged))
          if (reports[0].copied.includes(CONFIG_FILE)) {
            const graphs = opened.map(({ dataFiles }, i) => ({ path: paths[i], dataFiles }))
            await opened[0].writeConfig(staged, graphs)
          }
          return told({ ...reports.reduce(joined), out: out.name }, warnings)
        }),
      close,
    }
  } catch (error) {
    await close()
    throw error
  }
}

function told(report: MergeReport, warnings: readonly string[]): MergeReport {
  return { ...report, warnings: [...report.warnings, ...warnings] }
}

function joined(first: MergeReport, second: MergeReport): MergeReport {
  const names = new Set(first.layers.map(({ name }) => name))
  return {
    ...first,
    tensors: first.tensors + second.tensors,
    changed: first.changed + second.changed,
    ...(first.branches !== undefined || second.branches !== undefined
      ? { branches: (first.branches ?? 0) + (second.branches ?? 0) }
      : {}),
    bytes: first.bytes + second.bytes,
    seconds: Math.max(first.seconds, second.seconds),
    layers: [...first.layers, ...second.layers.filter(({ name }) => !names.has(name))],
    warnings: [...first.warnings, ...second.warnings],
  }
}

/** The share of each graph in the adapters. */
async function spreadAll(
  models: readonly OnnxModel[],
  paths: readonly string[],
  adapters: readonly WeightedOnnx[],
  { modules, allowMissing = false, config }: MergeGraphsOptions,
): Promise<{ parts: WeightedOnnx[][]; warnings: string[] }> {
  if (models.length === 1 && !allowMissing) return { parts: [[...adapters]], warnings: [] }
  const graphs = models.map(({ proto }, i) => {
    const graph = new Graph(proto)
    return { graph, role: roleOf(paths[i]), name: paths[i], linears: findLinears(graph, modules) }
  })
  const parts: WeightedOnnx[][] = models.map(() => [])
  const warnings: string[] = []
  for (const { adapter, weight } of adapters) {
    const heads = await Promise.all(
      graphs.map(({ graph, linears }) => findMergedHead(graph, linears, config?.values ?? {}, [adapter])),
    )
    const hasPlace = async (i: number, name: string) =>
      heads[i]?.placed.tensors.has(name) === true ||
      isPlaced(models[i], graphs[i].graph, adapter.only(new Set([name])), { modules, config })
    const { parts: own, missing } = await spreadAdapter(graphs, adapter, hasPlace)
    if (missing.length > 0) {
      const linears = graphs.flatMap(({ linears }) => linears.map(({ name }) => name))
      if (!allowMissing) throw missingError(missing, linears, adapter.size, paths)
      if (missing.length === adapter.size) {
        throw new MismatchError({ where: 'adapter', what: 'the model has no module for any of its layers' })
      }
      warnings.push(`left out, because the model has no module for it: ${missing.join(', ')}`)
    }
    own.forEach((names, i) => {
      if (names.size > 0) parts[i].push({ adapter: adapter.only(names), weight })
    })
  }
  return { parts, warnings }
}

async function isPlaced(
  model: OnnxModel,
  graph: Graph,
  part: LoraAdapter,
  { modules = {}, config }: Pick<MergeGraphsOptions, 'modules' | 'config'>,
): Promise<boolean> {
  try {
    await collectEdits(model, graph, [{ adapter: part, weight: 1 }], modules, { config: config?.values })
    return true
  } catch (error) {
    if (error instanceof LowrankError) return false
    throw error
  }
}
