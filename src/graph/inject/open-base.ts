// What of the base's own weights a graph trains: whole tensors, and single rows of embeddings.

import type { NodeProto } from '../../formats/onnx/gen/onnx_pb.js'
import type { CustomGradients } from '../gradients/backward.js'
import type { Linear } from '../match/linears.js'
import type { TrainedTensor } from '../training/objective-graph.js'
import type { Graph } from '../view/graph.js'
import { openTensors, openWeight, type WholeTensor } from './open-tensors.js'
import { openTokenRows, type TrainedRows } from './token-rows.js'

/** Opens weights of the base in a graph. Training without any of them needs none of this code. */
export interface BaseOpener {
  /** Names of tensors that stay as they are where the loss does not depend on them. */
  readonly optional: ReadonlySet<string>
  /**
   * @param linears those of `graph`
   * @throws MismatchError when the graph has no such tensor, or another shape; UnsupportedError, naming it, for one that cannot be trained
   */
  open(graph: Graph, linears: readonly Linear[]): OpenBase
}

/** Weights of the base that are inputs of a graph. */
export interface OpenBase {
  /** What is to be declared among the graph's inputs. */
  readonly trained: readonly TrainedTensor[]
  /** The linear layers whose weights, or rows of them, are trained. */
  layersOf(linears: readonly Linear[]): Linear[]
  /** Lets these layers read the inputs. `inRows` has each as one that computes rows (n, k) → (n, d), by its node. */
  openLayers(inRows: ReadonlyMap<NodeProto, Linear>, custom: CustomGradients): void
}

/** What opens these tensors and rows. */
export function baseOpener(tensors: readonly WholeTensor[], rows: readonly TrainedRows[]): BaseOpener {
  return {
    optional: new Set(tensors.flatMap(({ name, isOptional }) => (isOptional ? [name] : []))),
    open(graph, linears) {
      const whole = openTensors(graph, linears, tensors)
      const ofTokens = openTokenRows(graph, rows)
      return {
        trained: [...whole.trained, ...ofTokens.trained],
        layersOf: (all) => [...whole.weights.map(({ linear }) => linear), ...ofTokens.headsOf(all)],
        openLayers(inRows, custom) {
          for (const weight of whole.weights) openWeight(graph, inRows.get(weight.linear.node)!.node, weight)
          ofTokens.openHeads(inRows, custom)
        },
      }
    },
  }
}
