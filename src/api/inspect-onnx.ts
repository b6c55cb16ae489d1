// Lists the inputs, outputs and adaptable layers of the graphs of an ONNX model.

import { closing, type Directory } from '../core/base/bytes.js'
import { attempt } from '../core/base/errors.js'
import { type GraphDtype, type GraphRole, graphDtypes, graphFile, roleOf } from '../model/graph-file.js'
import type { FormName } from '../model/match/forms/form.js'
import { abilitiesOf, type MergeWay } from '../model/match/forms/forms.js'
import { findEmbeddings } from '../model/match/forms/lookup.js'
import { otherPointwise } from '../model/match/forms/pointwise.js'
import { findLinears } from '../model/match/linears.js'
import { findBranches } from '../model/match/merged-branches.js'
import { loadOnnx } from '../onnx/format/model.js'
import { Graph } from '../onnx/view/graph.js'
import { gradientReach } from '../train/graph/reach.js'
import { checkTrainableForm } from '../train/graph/trainable-form.js'

/** One graph of a model. */
export interface GraphContents {
  /** The role of the graph in the model. */
  role: GraphRole
  /** The path of its file in the folder. */
  file: string
  inputs: string[]
  outputs: string[]
}

interface StoredContents {
  /** The module name, which `targetModules` can contain. */
  name: string
  /** The graph that it is in. */
  graph: GraphRole
  /**
   * How the graph computes the layer. `Conv`: some exporters write a linear layer as a convolution of kernel 1; the
   * target `all-linear` leaves it out.
   */
  form: FormName
  /** How the weight or the embedding table is stored. */
  layout: string
  /** The ways to merge into this layer or embedding, the default first. */
  merge: MergeWay[]
  /** The part of its layout that lowrank does not understand, or null. */
  problem: string | null
}

/** A linear layer of a graph. */
export interface LinearContents extends StoredContents {
  d: number
  k: number
  isHead: boolean
  /** True if sessions can run it with adapters. */
  run: boolean
  /** True if adapters can be trained on it: its weight can be read, and a gradient reaches it. */
  train: boolean
  /** How many adapters an earlier merge added as branches, beside the weight. */
  branches: number
}

/** An embedding of a graph, or another table whose rows are looked up. */
export interface EmbeddingContents extends StoredContents {
  /** V: number of rows. */
  vocabulary: number
  /** D: numbers in each row. */
  features: number
}

/** Inputs, outputs and adaptable layers of an ONNX model. */
export interface OnnxContents {
  /** Names of the inputs. If there are several graphs: of the first. */
  inputs: string[]
  /** Names of the outputs. If there are several graphs: of the first. */
  outputs: string[]
  graphs: GraphContents[]
  /**
   * The types in which the folder has each graph. The key is the name of its file without the type. Empty if the source
   * is a single file.
   */
  dtypes: Record<string, GraphDtype[]>
  /** The linear layers. Each module is listed once, even if both branches of an If compute it. */
  linears: LinearContents[]
  /** The embeddings, each module once. */
  embeddings: EmbeddingContents[]
}

export async function inspectGraphs(
  directory: Directory,
  files: readonly string[],
  isFolder: boolean,
): Promise<OnnxContents> {
  const graphs: GraphContents[] = []
  const linears: LinearContents[] = []
  const embeddings: EmbeddingContents[] = []
  const dtypes: Record<string, GraphDtype[]> = {}
  for (const file of files) {
    const role = roleOf(file)
    await closing(await loadOnnx(directory, file), async (model) => {
      const graph = new Graph(model.proto)
      const inputs = graph.inputs.map(({ name }) => name)
      graphs.push({ role, file, inputs, outputs: graph.outputs.map(({ name }) => name) })
      const seen = new Set<string>()
      const branches = findBranches(graph)
      const found = findLinears(graph)
      const { stopped } = gradientReach(model.proto)
      const isTrainable = attempt(() => checkTrainableForm(graph)).problems.length === 0
      for (const linear of [...found, ...otherPointwise(graph, found)]) {
        const { name, form, layout, d, k, isHead } = linear
        const key = [name, form.name, layout].join()
        if (seen.has(key)) continue
        seen.add(key)
        const { run, merge, problem = null, ...able } = abilitiesOf(linear)
        const train = able.train && isTrainable && !stopped.has(linear.output)
        const beside = branches.filter(({ factors }) => factors.some(({ module }) => module === name))
        const count = new Set(beside.map(({ number }) => number)).size
        const abilities = { run, merge: [...merge], train, problem, branches: count }
        linears.push({ name, graph: role, form: form.name, layout, d, k, isHead, ...abilities })
      }
      embeddings.push(...embeddingsOf(graph, role))
    })
    const name = graphFile(file).name
    if (isFolder) dtypes[name] = await graphDtypes(directory, name)
  }
  const [{ inputs, outputs }] = graphs
  return { inputs, outputs, graphs, dtypes, linears, embeddings }
}

function embeddingsOf(graph: Graph, role: GraphRole): EmbeddingContents[] {
  const found = findEmbeddings(graph).map(({ name, k, d, form, layout, problem = null }): EmbeddingContents => {
    const merge: MergeWay[] = [form.isQuantized ? 'branches' : 'weights']
    return { name, graph: role, form: form.name, layout, vocabulary: k, features: d, merge, problem }
  })
  return [...new Map(found.map((item) => [item.name, item])).values()]
}
