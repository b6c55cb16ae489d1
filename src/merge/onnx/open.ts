// Plans a merge into the graphs of a model: a single graph, or an encoder and a decoder that share an adapter's layers.

import type { ByteSource } from '../../core/base/bytes.js'
import { roleOf } from '../../model/graph-file.js'
import { placedModel } from '../../model/place/place.js'
import { placedAdapter } from '../../model/place/placement.js'
import { missingFrom, nothingFits, spreadAdapter } from '../../model/place/spread.js'
import { type OnnxFile, planOnnx } from '../../onnx/format/layout.js'
import { loadOnnx, type OnnxModel } from '../../onnx/format/model.js'
import { Graph } from '../../onnx/view/graph.js'
import type { OpenBase, PlanInput } from '../parts.js'
import type { GraphShare, OpenAdapters } from '../plan/adapters.js'
import type { Config, WrittenGraph } from '../plan/config-edit.js'
import type { FitProblems } from '../plan/fit-problems.js'
import { coalesce, type Literal, type OutputFile, type Segment, segmentsOf } from '../plan/layout.js'
import { linesOf } from './edits.js'
import { findMergedHead } from './head.js'
import { type OnnxMergePlan, planOnnxMerge } from './plan.js'

interface BaseGraph {
  readonly model: OnnxModel
  readonly path: string
}

export async function openGraphs(input: PlanInput, models?: readonly OnnxModel[]): Promise<OpenBase> {
  const { base, chosen, sources, outFile, dataName, layout: place } = input
  const graphs: BaseGraph[] = []
  for (const [i, path] of chosen.graphs.entries()) {
    const model = models?.[i] ?? (await loadOnnx(base.directory, path))
    if (models === undefined) input.closers.push(() => model.close())
    graphs.push({ model, path })
  }
  sources.push(...graphs.flatMap(({ model }) => [...model.files.values()]))
  const plan: OpenBase['plan'] = async (opened, config, fit) => {
    const { shares, warnings } = await spreadAll(graphs, opened, input, config, fit)
    const files: OutputFile[] = []
    const plans: OnnxMergePlan[] = []
    const written: WrittenGraph[] = []
    for (const [i, { model, path: basePath }] of graphs.entries()) {
      const name = basePath.slice(basePath.lastIndexOf('/') + 1)
      const placed = place === undefined ? basePath : place === 'optimum' ? name : `onnx/${name}`
      const path = (graphs.length === 1 ? outFile : undefined) ?? placed
      const plan = await planOnnxMerge(model, shares[i], opened, fit, { ...input, config: config?.values })
      if (plan === undefined) continue
      plans.push(plan)
      const replaced = new Set(plan.targets.keys())
      const layout = { replaced, keepsFiles: plan.branches.length > 0, dataPath: dataName }
      const planned = await planOnnx(plan.model, plan.proto, path, layout)
      written.push({ path, dataFiles: planned.length - 1 })
      files.push(...planned.map((file, j) => outputFile(file, j === planned.length - 1, plan, sources)))
    }
    if (plans.length < graphs.length) return undefined
    const head = plans.find((plan) => plan.head !== undefined)?.head
    const read = graphs.flatMap(({ model }) => [...model.files.keys()])
    const vocabulary = plans.find((plan) => plan.vocabulary !== undefined)?.vocabulary
    const branches = plans.flatMap((plan) => plan.branches)
    const names = [...new Set([...plans.flatMap((plan) => plan.reports), ...branches])]
    return {
      files,
      replaced: [...files.map(({ path }) => path), ...read].map((name) => name.replace(/\/.*/, '/')),
      edit: { untied: [], dtype: undefined, vocabulary, head, graphs: written },
      vocabulary,
      warnings: [...warnings, ...plans.flatMap(({ notes }) => notes)],
      summary: {
        added: plans.flatMap(({ added }) => added),
        ...(branches.length > 0 && { branches: branches.length }),
      },
      layers: names.map((name) => ({ name })),
    }
  }
  return { where: graphs.length === 1 ? graphs[0].model.name : base.directory.name, plan }
}

function outputFile(
  { path, byteLength, pieces }: OnnxFile,
  isGraph: boolean,
  { model, targets, proto }: OnnxMergePlan,
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
    } else for (const segment of segmentsOf(targets.get(piece.replaced)!, offset)) segments.push(segment)
  }
  const names = isGraph ? (proto.graph?.initializer ?? []).map(({ name }) => name) : []
  const changed = isGraph ? [...targets.keys()] : []
  return { path, byteLength, literals, segments: coalesce(segments), tensors: names, changed }
}

async function spreadAll(
  bases: readonly BaseGraph[],
  opened: OpenAdapters,
  { modules, allowMissing = false }: PlanInput,
  config: Config | undefined,
  fit: FitProblems,
): Promise<{ shares: GraphShare[][]; warnings: string[] }> {
  const all = opened.adapters.map(
    (adapter, index): GraphShare => ({ ...adapter, index, parts: adapter.adapter.parts() }),
  )
  const graphs = bases.map(({ model, path }) => {
    const placed = placedModel(new Graph(model.proto), 'merge', config?.values, modules)
    return { ...placed, onnx: model, role: roleOf(path), name: path }
  })
  const shares: GraphShare[][] = bases.map(() => [])
  const warnings: string[] = []
  for (const whole of all) {
    const shareOf = (names: ReadonlySet<string>) => {
      return { ...whole, parts: whole.parts.filter(({ name }) => names.has(name)) }
    }
    const { unused, parts, missing } = await spreadAdapter(
      graphs,
      placedAdapter(whole.adapter),
      linesOf(opened, whole.index),
      allowMissing,
      ({ graph, linears, config }, names) =>
        fit.note(() => findMergedHead(graph, linears, config, [shareOf(names)]))?.placed.tensors,
    )
    if (unused.length > 0) {
      warnings.push(`left out, because the model has no module for it: ${unused.join(', ')}`)
      fit.notes.push(`left out, because nothing would read what it gives: ${unused.join(', ')}`)
      fit.parts.push(...unused.map((name) => ({ name, info: undefined })))
    }
    if (missing.length > 0) {
      const names = whole.parts.flatMap(({ name }) => (unused.includes(name) ? [] : name))
      if (!allowMissing) {
        fit.problems.push(missingFrom(graphs, names, missing))
        for (const name of missing) {
          fit.parts.push({ name, info: undefined, problem: missingFrom(graphs, names, [name]) })
        }
      } else if (missing.length === names.length) fit.add(nothingFits())
      warnings.push(`left out, because the model has no module for it: ${missing.join(', ')}`)
    }
    parts.forEach((names, i) => {
      if (names.size > 0) shares[i].push(shareOf(names))
    })
  }
  return { shares, warnings }
}
