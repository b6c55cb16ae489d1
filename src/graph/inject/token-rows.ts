// Lets single rows of an embedding be graph inputs, so that they can be trained: in lookups of its tokens, and in
// output layers, where a row gives the logit of its token. The embedding itself stays in its file.

import { TensorProto_DataType as DataType, type NodeProto } from '../../formats/onnx/gen/onnx_pb.js'
import type { CustomGradients } from '../gradients/backward.js'
import type { Linear } from '../match/linears.js'
import { findEmbeddings, ownBiasInput } from '../match/parameters.js'
import type { TrainedTensor } from '../training/objective-graph.js'
import { Builder, type Value } from '../view/builder.js'
import type { Graph } from '../view/graph.js'

/** Rows (m, D) of an embedding that are trained. */
export interface TrainedRows {
  /** As the adapter calls them: model.embed_tokens[tokens] */
  readonly name: string
  /** m different tokens, in the order of the rows. */
  readonly tokens: readonly number[]
  readonly features: number
  /** The graph's name of the embedding; undefined for rows of an output layer alone. */
  readonly embedding: string | undefined
  /** The graph's names of the output layers that have these rows. */
  readonly heads: readonly string[]
}

/** Rows of one graph, once its lookups read them. */
export interface OpenRows {
  readonly trained: readonly TrainedTensor[]
  /** The output layers among these that have trained rows; none where the loss needs no logits. */
  headsOf(linears: readonly Linear[]): Linear[]
  /**
   * Lets output layers compute the logits of these tokens from the rows.
   *
   * @param inRows each layer as one that computes rows (n, k) → (n, V), by its node
   */
  openHeads(inRows: ReadonlyMap<NodeProto, Linear>, custom: CustomGradients): void
}

/** Lets lookups read rows that are inputs: where a token is one of theirs, its row takes the place of the base's. */
export function openTokenRows(graph: Graph, rows: readonly TrainedRows[]): OpenRows {
  const g = new Builder(graph, 'trained')
  const embeddings = findEmbeddings(graph)
  for (const { name, tokens, embedding } of rows) {
    for (const { node, last } of embeddings.filter((one) => one.name === embedding)) {
      const [output] = last.output
      const base = graph.freshName(`${output}/base`)
      graph.setOutput(last, 0, base)
      const token = g.unsqueeze(g.cast(node.input[1], DataType.INT64), [-1])
      // (…, m), with a 1 where the token is the row's: the product with the rows has a gradient of few operators.
      const places = g.cast(g.op('Equal', [token, g.int(tokens)]), DataType.FLOAT)
      const isTrained = g.cast(g.reduceSum(places, [-1]), DataType.BOOL)
      const replaced = g.node('Where', [isTrained, g.matmul(places, inputOf(name)), base])
      graph.setOutput(replaced, 0, output)
    }
  }
  const headsOf = (linears: readonly Linear[], own: readonly string[]) =>
    linears.filter(({ name }) => own.includes(name))
  let found: readonly Linear[] = []
  return {
    trained: rows.map(({ name, tokens, features }) => {
      return { name, input: inputOf(name), shape: [tokens.length, features] }
    }),
    headsOf(linears) {
      const all = rows.flatMap(({ heads }) => heads)
      found = headsOf(linears, all)
      return [...found]
    },
    openHeads(inRows, custom) {
      for (const { name, tokens, heads } of rows) {
        for (const { node } of headsOf(found, heads)) {
          openHead(g, inRows.get(node)!, { rows: inputOf(name), tokens, custom })
        }
      }
    },
  }
}

function inputOf(name: string): Value {
  return `trained/${name}`
}

/**
 * Writes x·Rᵀ over the logits of the rows' tokens. Both the logits and their gradient are the largest tensors of a run:
 * ScatterElements can write where they are.
 */
function openHead(
  g: Builder,
  { node, last, input }: Linear,
  { rows, tokens, custom }: { rows: Value; tokens: readonly number[]; custom: CustomGradients },
): void {
  const { graph } = g
  const [output] = last.output
  const base = graph.freshName(`${output}/base`)
  graph.setOutput(last, 0, base)
  const columns = g.int(tokens)
  const product = g.op('Gemm', [input, rows], { transB: 1 })
  const bias = ownBiasInput(node)
  const own = bias === undefined ? product : g.add(product, g.op('Gather', [node.input[bias], columns]))
  const places = g.expand(g.unsqueeze(columns, [0]), g.shape(own))
  const replaced = g.node('ScatterElements', [base, places, own], { axis: 1 })
  graph.setOutput(replaced, 0, output)
  custom.set(output, {
    inputs: [base, own],
    rule: ({ g: back, dy }) => [
      () => back.op('ScatterElements', [dy, places, back.expand(back.float(0), back.shape(own))], { axis: 1 }),
      () => back.op('Gather', [dy, columns], { axis: 1 }),
    ],
  })
}
