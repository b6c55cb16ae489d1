// Plans a merge into the graphs of a model, a decoder alone or encoder and decoder, which an adapter spreads over.

import type { ByteSource } from '../../base/bytes.js'
import { MismatchError, UnsupportedError } from '../../base/errors.js'
import { groupBy } from '../../base/group.js'
import { type OnnxFile, planOnnx } from '../../formats/onnx/layout.js'
import { loadOnnx, type OnnxModel } from '../../formats/onnx/model.js'
import { roleOf } from '../../graph/graph-file.js'
import { findEmbeddings } from '../../graph/match/forms/lookup.js'
import { findLinears } from '../../graph/match/linears.js'
import { missingError } from '../../graph/match/match.js'
import { spreadAdapter, unusedPoolers } from '../../graph/match/spread.js'
import { Graph } from '../../graph/view/graph.js'
import { otherFiles } from '../other-files.js'
import { openPartAdapters, type PartInput, type PlanPart, unfinishedPart } from '../parts.js'
import { type GraphShare, type OpenAdapters, requireFiniteReplacements } from '../plan/adapters.js'
import { type Config, editConfig, editForHub, headWarning, loadConfig } from '../plan/config-edit.js'
import { Fit } from '../plan/fit.js'
import { coalesce, type Literal, type OutputFile, type Segment, segmentsOf } from '../plan/layout.js'
import type { LayerChange } from '../report.js'
import { collectEdits } from './edits.js'
import { findMergedHead } from './head.js'
import { type OnnxMergePlan, planOnnxMerge } from './plan.js'

interface BaseGraph {
  readonly model: OnnxModel
  readonly path: string
}

export async function openOnnxPart(input: PartInput, models?: readonly OnnxModel[]): Promise<PlanPart> {
  const { base, chosen, sources, outFile, weightsOnly = false } = input
  const graphs: BaseGraph[] = []
  for (const [i, path] of chosen.graphs.entries()) {
    const model = models?.[i] ?? (await loadOnnx(base.directory, path))
    if (models === undefined) input.closers.push(() => model.close())
    graphs.push({ model, path })
  }
  for (const { model } of graphs) {
    for (const file of model.files.values()) {
      sources.push(file)
      input.baseFiles.set(file, 0)
    }
  }
  const opened = await openPartAdapters(input)
  const config = await loadConfig(base.directory)
  const fit = new Fit(input.onlyFits)
  fit.where = graphs.length === 1 ? graphs[0].model.name : base.directory.name
  fit.add(...opened.problems)
  const { shares, warnings } = await spreadAll(graphs, opened, input, config, fit)
  const factors = input.outDtype === 'fp32' || input.outDtype === 'fp16' ? input.outDtype : undefined
  const files: OutputFile[] = []
  const plans: OnnxMergePlan[] = []
  const written: { path: string; dataFiles: number }[] = []
  for (const [i, { model, path: own }] of graphs.entries()) {
    const path = (graphs.length === 1 ? outFile : undefined) ?? own
    const plan = await planOnnxMerge(model, shares[i], opened, fit, { ...input, config: config?.values, factors })
    if (plan === undefined) continue
    plans.push(plan)
    const isBranched = plan.branches.length > 0
    const replaced = new Set([...plan.targets.keys(), ...plan.requantized.keys()])
    const planned = await planOnnx(model, plan.proto, path, { replaced, keepsFiles: isBranched })
    written.push({ path, dataFiles: planned.length - 1 })
    files.push(...planned.map((file, j) => outputFile(file, j === planned.length - 1, model, plan, sources)))
  }
  sortParts(fit, opened)
  if (plans.length < graphs.length) return unfinishedPart(fit)
  await requireFiniteReplacements(opened)
  if (factors !== undefined && plans.every(({ branches }) => branches.length === 0)) throw noFactors()
  const head = plans.find((plan) => plan.head !== undefined)?.head
  const read = graphs.flatMap(({ model }) => [...model.files.keys()])
  const own = [...files.map(({ path }) => path), ...read].map((name) => name.replace(/\/.*/, '/'))
  const vocabulary = plans.find((plan) => plan.vocabulary !== undefined)?.vocabulary
  const edit = { untied: [], dtype: undefined, vocabulary, head }
  const text = !weightsOnly && config ? editForHub(config, editConfig(config, edit), written) : undefined
  const { files: others, leftOut, warnings: told } = await otherFiles(input, own, text, vocabulary)
  warnings.push(...told)
  if (head !== undefined && (weightsOnly || config === undefined)) warnings.push(headWarning(head))
  const branches = plans.reduce((sum, plan) => sum + plan.branches.length, 0)
  const layers = inOrder(plans.flatMap(namesOf), opened)
  return {
    files,
    others,
    magnitudes: opened.magnitudes,
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
    fit,
    async changes(sums) {
      const changes = new Map<string, LayerChange>()
      for (const plan of plans) {
        for (const name of plan.reports) changes.set(name, { name, relativeChange: sums.relativeChange(name) })
        for (const change of await plan.changes()) changes.set(change.name, change)
      }
      return inOrder(changes.keys(), opened).map((name) => changes.get(name)!)
    },
  }
}

function namesOf({ reports, branches, quantized }: OnnxMergePlan): string[] {
  return [...reports, ...branches.map(({ name }) => name), ...quantized]
}

function outputFile(
  { path, byteLength, pieces }: OnnxFile,
  isGraph: boolean,
  model: OnnxModel,
  { targets, requantized, proto }: OnnxMergePlan,
  sources: readonly ByteSource[],
): OutputFile {
  const literals: Literal[] = []
  const segments: Segment[] = []
  for (const piece of pieces) {
    const { offset, byteLength: length } = piece
    if ('bytes' in piece) literals.push(piece)
    else if ('location' in piece) {
      const source = sources.indexOf(model.file(piece.location))
      segments.push({ offset, byteLength: length, source, baseOffset: piece.from, weight: undefined })
    } else {
      const bytes = requantized.get(piece.replaced)
      if (bytes !== undefined) literals.push({ offset, byteLength: length, bytes })
      else segments.push(...segmentsOf(targets.get(piece.replaced)!, offset))
    }
  }
  const names = isGraph ? (proto.graph?.initializer ?? []).map(({ name }) => name) : []
  const changed = isGraph ? [...targets.keys(), ...requantized.keys()] : []
  return { path, byteLength, literals, segments: coalesce(segments), tensors: names, changed }
}

function noFactors(): UnsupportedError {
  return new UnsupportedError({
    where: 'outDtype',
    what: 'the types of an .onnx file stay as they are; only factors beside quantized weights have a type of their own',
    got: "a result in the format 'onnx'",
    hint: 'Leave it out: the adapters have no quantized weights here',
  })
}

/** Names of parts, each once, in the adapters' order. */
function inOrder(names: Iterable<string>, { adapters }: OpenAdapters): string[] {
  const all = new Set(names)
  const parts = adapters.flatMap(({ adapter }) => adapter.parts())
  const own = parts
    .map((part) => (part.kind === 'token-rows' ? part.module : part.name))
    .filter((name) => all.has(name))
  // A module that the graph computes as several has its parts' names there.
  return [...new Set([...own, ...all])]
}

/** Puts the parts into the adapters' order, each once: where a part goes to several graphs, with its first problem. */
function sortParts({ parts }: Fit, opened: OpenAdapters): void {
  const byName = groupBy(parts, ({ name }) => name)
  const sorted = inOrder(byName.keys(), opened).map((name) => {
    const own = byName.get(name)!
    return own.find(({ problem }) => problem !== undefined) ?? own[0]
  })
  parts.splice(0, parts.length, ...sorted)
}

async function spreadAll(
  bases: readonly BaseGraph[],
  opened: OpenAdapters,
  { modules, allowMissing = false }: PartInput,
  config: Config | undefined,
  fit: Fit,
): Promise<{ shares: GraphShare[][]; warnings: string[] }> {
  const all = opened.adapters.map((one, index): GraphShare => ({ ...one, index, parts: one.adapter.parts() }))
  const graphs = bases.map(({ model, path }) => {
    const graph = new Graph(model.proto)
    const linears = findLinears(graph, modules)
    const places = { model, graph, linears, config: config?.values ?? {}, embeddings: findEmbeddings(graph) }
    return { ...places, role: roleOf(path), name: path }
  })
  const shares: GraphShare[][] = bases.map(() => [])
  const warnings: string[] = []
  for (const whole of all) {
    const names = whole.parts.map(({ name }) => name)
    const unused = unusedPoolers(graphs, names)
    const share = { ...whole, parts: whole.parts.filter(({ name }) => !unused.includes(name)) }
    if (unused.length > 0) {
      warnings.push(`left out, because the model has no module for it: ${unused.join(', ')}`)
      fit.notes.push(`left out, because nothing would read what it gives: ${unused.join(', ')}`)
      fit.parts.push(...unused.map((name) => ({ name, info: undefined })))
    }
    if (bases.length === 1 && !allowMissing) {
      shares[0].push(share)
      continue
    }
    const heads = await Promise.all(
      graphs.map(({ graph, linears, config }) => {
        return findMergedHead(graph, linears, config, [share]).catch((error) => fit.refused(error))
      }),
    )
    const hasPlace = async (i: number, name: string) => {
      if (heads[i]?.placed.tensors.has(name)) return true
      const scratch = new Fit()
      const parts = share.parts.filter((part) => part.name === name)
      await collectEdits(graphs[i], [{ ...share, parts }], opened, scratch)
      return scratch.problems.length === 0
    }
    const { parts: own, missing } = await spreadAdapter(graphs, share.parts, hasPlace)
    if (missing.length > 0) {
      const linears = graphs.flatMap(({ linears }) => linears.map(({ name }) => name))
      const paths = bases.map(({ path }) => path)
      if (!allowMissing) {
        fit.problems.push(missingError(missing, linears, share.parts.length, paths))
        for (const name of missing) {
          fit.parts.push({ name, info: undefined, problem: missingError([name], linears, share.parts.length, paths) })
        }
      } else if (missing.length === share.parts.length) {
        fit.add(new MismatchError({ where: 'adapter', what: 'the model has no module for any of its layers' }))
      }
      warnings.push(`left out, because the model has no module for it: ${missing.join(', ')}`)
    }
    own.forEach((names, i) => {
      if (names.size > 0) shares[i].push({ ...share, parts: share.parts.filter(({ name }) => names.has(name)) })
    })
  }
  return { shares, warnings }
}
