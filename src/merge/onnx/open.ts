// Opens the graphs of a model, a decoder alone or encoder and decoder, and plans a merge into them: a new model whose
// weights hold W + Σ w·s·B·A, of the same types, which runs anywhere without LoRA inputs. An adapter spreads over the
// graphs.

import { LowrankError, MismatchError, UnsupportedError } from '../../base/errors.js'
import { type OnnxFile, planOnnx } from '../../formats/onnx/layout.js'
import { loadOnnx, type OnnxModel } from '../../formats/onnx/model.js'
import { roleOf } from '../../graph/graph-file.js'
import { findLinears, type ModuleMap } from '../../graph/match/linears.js'
import { spreadAdapter } from '../../graph/match/spread.js'
import { Graph } from '../../graph/view/graph.js'
import { LoraAdapter } from '../../lora/adapter.js'
import { loadAdapter } from '../../peft/adapter-folder.js'
import { requireMatched } from '../../peft/unmatched.js'
import type { OtherFile } from '../companions.js'
import { otherFiles } from '../other-files.js'
import type { PartInput, PlanPart } from '../parts.js'
import { type Config, editConfig, editForHub, headWarning, loadConfig } from '../plan/config-edit.js'
import { coalesce, type Literal, type OutputFile, type Segment, segmentsOf } from '../plan/layout.js'
import type { LayerChange } from '../report.js'
import { collectEdits } from './edits.js'
import { findMergedHead } from './head.js'
import { type OnnxMergePlan, planOnnxMerge } from './plan.js'

/** An adapter in memory, and how much of it is merged. */
interface WeightedLora {
  readonly adapter: LoraAdapter
  readonly weight: number
}

/** A graph of a merge, by its place in the base's folder. */
interface BaseGraph {
  readonly model: OnnxModel
  readonly path: string
}

/**
 * Plans the part of a merge that is an .onnx. Throws MismatchError naming all graphs when a layer has no module in any
 * of them.
 */
export async function openOnnxPart(input: PartInput, models?: readonly OnnxModel[]): Promise<PlanPart> {
  const { base, chosen, sign, sources, outFile, modules, quantized, externalData = 'copy', weightsOnly = false } = input
  const graphs: BaseGraph[] = []
  for (const [i, path] of chosen.graphs.entries()) {
    const model = models?.[i] ?? (await loadOnnx(base.directory, path))
    if (models === undefined) input.closers.push(() => model.close())
    graphs.push({ model, path })
  }
  const loaded = await loadAdapters(input)
  const config = await loadConfig(base.directory)
  const { shares, warnings } = await spreadAll(graphs, loaded, input, config)
  const factors = input.outDtype === 'fp32' || input.outDtype === 'fp16' ? input.outDtype : undefined
  const asked = { config: config?.values, modules, quantized, factors, isUnmerge: sign === -1 }
  const files: OutputFile[] = []
  const plans: OnnxMergePlan[] = []
  const written: { path: string; dataFiles: number }[] = []
  for (const [i, { model, path: own }] of graphs.entries()) {
    const path = (graphs.length === 1 ? outFile : undefined) ?? own
    for (const file of model.files.values()) {
      sources.push(file)
      input.baseFiles.set(file, 0)
    }
    const plan = await planOnnxMerge(model, shares[i], asked, sources)
    plans.push(plan)
    const isBranched = plan.branches.length > 0
    const replaced = new Set([...plan.targets.keys(), ...plan.requantized.keys()])
    const planned = await planOnnx(model, plan.proto, path, { replaced, keepsFiles: isBranched })
    written.push({ path, dataFiles: planned.length - 1 })
    const of = { model, plan, input, isLinked: isBranched && externalData === 'hardlink' }
    files.push(...planned.map((file, j) => outputFile(file, j === planned.length - 1, of)))
  }
  if (factors !== undefined && plans.every(({ branches }) => branches.length === 0)) throw noFactors()
  const head = plans.find((plan) => plan.head !== undefined)?.head
  const hasCompanions = !weightsOnly && chosen.format === 'onnx'
  const others: OtherFile[] = []
  const leftOut: string[] = []
  if (hasCompanions) {
    const read = graphs.flatMap(({ model }) => [...model.files.keys()])
    const own = new Set([...files.map(({ path }) => path), ...read].map((name) => name.replace(/\/.*/, '/')))
    const edited = head && config && editConfig(config, { untied: [], dtype: undefined, head })
    const companions = await otherFiles(input, own, config && editForHub(config, edited ?? config.text, written))
    warnings.push(...companions.warnings)
    others.push(...companions.files)
    leftOut.push(...companions.leftOut)
  }
  // Beside a checkpoint, config.json is the checkpoint's to write.
  const isTold = chosen.format === 'both' || (hasCompanions && config !== undefined)
  if (head !== undefined && !isTold) warnings.push(headWarning(head))
  const branches = plans.reduce((sum, plan) => sum + plan.branches.length, 0)
  const layers = inOrder(plans.flatMap(namesOf), loaded)
  return {
    files,
    others,
    magnitudes: plans.flatMap(({ magnitudes }) => magnitudes),
    summary: {
      ...(branches > 0 && { branches }),
      added: plans.flatMap(({ added }) => added),
      renamed: [],
      copied: others.map(({ path }) => path),
      leftOut,
      warnings,
    },
    layers: layers.map((name) => ({ name })),
    tensors: new Map(),
    async changes(sums) {
      const changes = new Map<string, LayerChange>()
      for (const plan of plans) {
        for (const name of plan.reports) changes.set(name, { name, relativeChange: sums.relativeChange(name) })
        for (const change of await plan.changes()) changes.set(change.name, change)
      }
      return inOrder(changes.keys(), loaded).map((name) => changes.get(name)!)
    },
  }
}

/** The names of the layers that a plan changes. */
function namesOf({ reports, branches, quantized }: OnnxMergePlan): string[] {
  return [...reports, ...branches.map(({ name }) => name), ...quantized]
}

function outputFile(
  { path, byteLength, pieces, copyOf }: OnnxFile,
  isGraph: boolean,
  of: { model: OnnxModel; plan: OnnxMergePlan; input: PartInput; isLinked: boolean },
): OutputFile {
  const { model, plan, input, isLinked } = of
  const { targets, requantized, proto } = plan
  const { sources } = input
  const literals: Literal[] = []
  const segments: Segment[] = []
  const sourceOf = (location: string) => sources.indexOf(model.file(location))
  for (const piece of pieces) {
    const { offset, byteLength: length } = piece
    if ('bytes' in piece) literals.push(piece)
    else if ('location' in piece) {
      const source = sourceOf(piece.location)
      segments.push({ offset, byteLength: length, source, baseOffset: piece.from, weight: undefined })
    } else {
      const bytes = requantized.get(piece.replaced)
      if (bytes !== undefined) literals.push({ offset, byteLength: length, bytes })
      else segments.push(...segmentsOf(targets.get(piece.replaced)!, offset))
    }
  }
  const link = isLinked && copyOf !== undefined ? { link: sourceOf(copyOf) } : {}
  const names = isGraph ? (proto.graph?.initializer ?? []).map(({ name }) => name) : []
  const changed = isGraph ? [...targets.keys(), ...requantized.keys()] : []
  return { path, byteLength, literals, segments: coalesce(segments), tensors: names, changed, ...link }
}

function noFactors(): UnsupportedError {
  return new UnsupportedError({
    where: 'outDtype',
    what: 'the types of an .onnx file stay as they are; only factors beside quantized weights have a type of their own',
    got: "a result in the format 'onnx'",
    hint: 'Leave it out: the adapters have no quantized weights here',
  })
}

/** Reads the adapters that are folders. Throws MismatchError when there is none. */
async function loadAdapters({ adapters, sign, strict = false }: PartInput): Promise<WeightedLora[]> {
  const result: WeightedLora[] = []
  for (const [i, { adapter, weight }] of adapters.entries()) {
    const loaded = adapter instanceof LoraAdapter ? adapter : await loadAdapter(adapter)
    if (strict) requireMatched(loaded, `adapter ${i + 1}`)
    result.push({ adapter: loaded, weight: sign * weight })
  }
  if (result.length === 0) throw new MismatchError({ where: 'adapters', what: 'there is no layer to merge' })
  return result
}

/** Names of layers, each once, in the adapters' order. */
function inOrder(names: Iterable<string>, adapters: readonly WeightedLora[]): string[] {
  const all = new Set(names)
  const own = adapters.flatMap(({ adapter }) => adapter.names()).filter((name) => all.has(name))
  // A module that the graph computes as several has its parts' names there.
  return [...new Set([...own, ...all])]
}

/** The share of each graph in the adapters. */
async function spreadAll(
  bases: readonly BaseGraph[],
  adapters: readonly WeightedLora[],
  { modules, allowMissing = false }: PartInput,
  config: Config | undefined,
): Promise<{ shares: WeightedLora[][]; warnings: string[] }> {
  const graphs = bases.map(({ model, path }) => {
    const graph = new Graph(model.proto)
    return { graph, role: roleOf(path), name: path, linears: findLinears(graph, modules) }
  })
  const shares: WeightedLora[][] = bases.map(() => [])
  const warnings: string[] = []
  for (const { adapter, weight } of adapters) {
    const heads = new Map<number, ReturnType<typeof findMergedHead>>()
    const headOf = (i: number) => {
      const { graph, linears } = graphs[i]
      const head = heads.get(i) ?? findMergedHead(graph, linears, config?.values ?? {}, [adapter])
      heads.set(i, head)
      return head
    }
    const hasPlace = async (i: number, name: string) =>
      (await headOf(i))?.placed.tensors.has(name) === true ||
      isPlaced(bases[i].model, graphs[i].graph, adapter.only(new Set([name])), modules, config)
    const { shares: own, left } = await spreadAdapter(graphs, adapter, allowMissing, hasPlace)
    if (left.length > 0) warnings.push(`left out, because the model has no module for it: ${left.join(', ')}`)
    own.forEach((share, i) => {
      if (share.size > 0 || bases.length === 1) shares[i].push({ adapter: share, weight })
    })
  }
  return { shares, warnings }
}

async function isPlaced(
  model: OnnxModel,
  graph: Graph,
  part: LoraAdapter,
  modules: ModuleMap = {},
  config: Config | undefined,
): Promise<boolean> {
  try {
    await collectEdits(model, graph, [{ adapter: part, weight: 1 }], modules, { config: config?.values })
    return true
  } catch (error) {
    if (error instanceof LowrankError) return false
    throw error
  }
}
