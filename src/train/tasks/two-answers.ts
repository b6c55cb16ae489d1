// Shared by DPO and KTO: examples of two answers, whose probabilities are compared with those before training.

import type { Model } from '../../model/model-folder.js'
import { type Example as Answer, countTargets } from '../../model/text/records.js'
import { TensorProto_DataType as DataType } from '../../onnx/format/gen/onnx_pb.js'
import type { Feeds, RuntimeTensor } from '../../onnx/runtime/runtime.js'
import type { Value } from '../../onnx/view/builder.js'
import { readGraph } from '../../onnx/view/graph.js'
import type { ObjectiveGraph } from '../graph/objective-graph.js'
import { CausalLm } from './causal-lm.js'
import { chooseTargets, PROBED_TARGETS, probeTargets, targetsLength } from './next-tokens.js'
import type { OpenTask } from './task.js'
import { batchLength, predictedRows, tokenProbe } from './token-probe.js'

export const SIDES = 2

export type Two = readonly [number, number]

/**
 * What DPO and KTO compute for examples of two answers. `before` of an example holds ln(probability) of both answers
 * before the first step.
 */
export class TwoAnswers<Example extends { readonly before?: Two }> {
  readonly probe: OpenTask['probe']
  readonly rowsOfExample = SIDES
  readonly #causal: CausalLm

  /**
   * `names` in the graph: the dimension that counts examples, an input with a row for each example, and for each side
   * the input that assigns targets to answers. `columns`: further feeds of the loss for n examples.
   */
  constructor(
    protected readonly model: Model,
    private readonly names: { readonly count: string; readonly column: string; readonly sides: readonly string[] },
    columns: (n: number) => Feeds,
  ) {
    this.#causal = new CausalLm(model, [])
    const probe = tokenProbe(readGraph(model.onnx))
    const [first, second] = probe.batches.map(({ batch, sequence }, i) => {
      const inputIds = new Int32Array(sequence)
      const texts = Array<Answer>(SIDES * batch).fill({ inputIds, labels: inputIds })
      const targets = PROBED_TARGETS[i]
      const sides = this.#sideFeeds(batch, Array(targets).fill(0))
      return { ...this.#causal.collate(texts, sequence), ...probeTargets(targets), ...sides, ...columns(batch) }
    })
    const texts = probe.lengths.map((length) => {
      const [a, b] = length.probed
      const counts = ['batch', 'rows'].includes(length.name)
      return counts ? { ...length, probed: [SIDES * a, SIDES * b] as const } : length
    })
    const examples = { ...batchLength(names.column), name: names.count }
    this.probe = { feeds: [first, second], lengths: [...texts, targetsLength(), examples] }
  }

  normalizer(examples: readonly Example[]): number {
    return examples.length
  }

  reference(outputs: Readonly<Feeds>): Two[] {
    return predictedRows(outputs).map(([first, second]): Two => [-first, -second])
  }

  /**
   * Returns −ln(probability) of the answers of each side, (n, 1). In a graph without gradients these values are also
   * the predictions, side by side.
   */
  protected losses(graph: ObjectiveGraph): Value[] {
    const { g } = graph
    const { logits, targets } = chooseTargets(graph, this.model, SIDES)
    const column = g.unsqueeze(graph.rowLosses(logits, targets), [1])
    const losses = this.names.sides.map((name) => {
      return g.op('MatMul', [graph.input(name, DataType.FLOAT, [this.names.count, 'targets']), column])
    })
    graph.predict(g.op('Concat', losses, { axis: 1 }))
    return losses
  }

  /** Makes the feeds. `sides` holds all first answers, and then all second answers. */
  protected sideFeeds(sides: readonly Answer[], length: number): Feeds {
    const rows = sides.flatMap(({ labels }, row) => Array<number>(countTargets(labels)).fill(row))
    return { ...this.#causal.collate(sides, length), ...this.#sideFeeds(sides.length / SIDES, rows) }
  }

  /** Returns the numbers from before training; NaN in the run that computes them. */
  protected before({ before = [Number.NaN, Number.NaN] }: Example): Two {
    return before
  }

  /** Changes of ln(probability) of each answer since before training. */
  protected changes(outputs: Readonly<Feeds>, examples: readonly Example[]): Two[] {
    const before = examples.map((example) => this.before(example))
    return this.reference(outputs).map(([first, second], i): Two => [first - before[i][0], second - before[i][1]])
  }

  #sideFeeds(n: number, rows: readonly number[]): Feeds {
    const feeds = this.names.sides.map((name, side) => {
      const data = new Float32Array(n * rows.length)
      rows.forEach((row, target) => {
        const example = row - side * n
        if (example >= 0 && example < n) data[example * rows.length + target] = 1
      })
      return [name, { type: 'float32', data, dims: [n, rows.length] }] as const
    })
    return Object.fromEntries(feeds)
  }
}

export function columnFeed(values: readonly number[]): RuntimeTensor {
  return { type: 'float32', data: Float32Array.from(values), dims: [values.length, 1] }
}
