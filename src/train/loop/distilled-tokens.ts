// Learning from a teacher's distributions: the teacher's graph gives ln(probability) of every token of the vocabulary
// at the targets, and the student's loss is the divergence from it, as in TRL 1.16's DistillationTrainer.

import { UnsupportedError } from '../../core/base/errors.js'
import type { Model } from '../../model/model-folder.js'
import type { Example } from '../../model/text/records.js'
import { TensorProto_DataType as DataType } from '../../onnx/format/gen/onnx_pb.js'
import type { Feeds } from '../../onnx/runtime/runtime.js'
import type { Builder, Value } from '../../onnx/view/builder.js'
import type { ObjectiveGraph } from '../graph/objective-graph.js'
import { CausalLm } from '../tasks/causal-lm.js'
import { chooseTargetRows, PROBED_TARGETS, withoutTargets } from '../tasks/next-tokens.js'
import type { OpenTask } from '../tasks/task.js'

const TEACHER = 'loss/teacher'
/** Below every probability that a float holds exactly, so that its logarithm is a number. */
const TINY = 1e-38

abstract class TargetRows extends CausalLm {
  readonly takesTurns = true

  constructor(
    model: Model,
    /** Logits are divided by it. */
    private readonly temperature: number,
  ) {
    super(model, [])
  }

  override get probe(): OpenTask['probe'] {
    const { feeds, lengths } = super.probe
    const [first, second] = feeds.map((each, i) => ({ ...withoutTargets(each), ...this.probed(PROBED_TARGETS[i]) }))
    return { feeds: [first, second], lengths }
  }

  /** The inputs, besides tokens, with which the shapes of the graph are measured. */
  protected probed(_targets: number): Feeds {
    return {}
  }

  /** (m, V): the logits at the targets, divided by the temperature. */
  protected logits(graph: ObjectiveGraph): Value {
    const { chosen } = chooseTargetRows(graph, this.model, 1)
    return graph.g.mul(chosen, graph.g.float(1 / this.temperature))
  }

  override collate(examples: readonly Example[], length: number): Feeds {
    return withoutTargets(super.collate(examples, length))
  }
}

/** The teacher: predicts ln(probability) of all tokens at the targets, (m, V). */
export class TeacherTokens extends TargetRows {
  override forward(graph: ObjectiveGraph): Value {
    const { g } = graph
    return g.op('ReduceSum', [graph.predict(g.op('LogSoftmax', [this.logits(graph)], { axis: 1 }))], { keepdims: 0 })
  }
}

export class DistilledTokens extends TargetRows {
  #taught: Float32Array = new Float32Array()
  /** Gives the teacher's ln(probability) at the targets of examples, (m, V). Set before the first step. */
  teach!: (examples: readonly Example[]) => Promise<Float32Array>

  /**
   * @param beta 0: KL(teacher ‖ student); 1: KL(student ‖ teacher); between: the divergence of Jensen and Shannon from
   *   the mixture (1 − beta)·student + beta·teacher
   */
  constructor(
    model: Model,
    temperature: number,
    private readonly beta: number,
  ) {
    super(model, temperature)
  }

  get #width(): number {
    const { vocabularySize, directory } = this.model
    if (vocabularySize !== undefined) return vocabularySize
    throw new UnsupportedError({ where: directory.name, what: 'config.json does not say how many tokens there are' })
  }

  protected override probed(targets: number): Feeds {
    return this.#feed(new Float32Array(targets * this.#width))
  }

  #feed(data: Float32Array): Feeds {
    return { [TEACHER]: { type: 'float32', data, dims: [data.length / this.#width, this.#width] } }
  }

  override async prepare(examples: readonly Example[]): Promise<void> {
    this.#taught = await this.teach(examples)
  }

  override collate(examples: readonly Example[], length: number): Feeds {
    return { ...super.collate(examples, length), ...this.#feed(this.#taught) }
  }

  override forward(graph: ObjectiveGraph): Value {
    const { g } = graph
    const { beta } = this
    const logits = this.logits(graph)
    const teacher = graph.input(TEACHER, DataType.FLOAT, ['targets', this.#width])
    const student = g.op('LogSoftmax', [logits], { axis: 1 })
    const [p, q] = [g.op('Exp', [student]), g.op('Exp', [teacher])]
    const divergence = (from: Value, logFrom: Value, logTo: Value) => g.mul(from, g.sub(logFrom, logTo))
    const mixture = () => {
      const mixed = g.add(g.mul(p, g.float(1 - beta)), g.mul(q, g.float(beta)))
      return g.op('Log', [g.op('Max', [mixed, g.float(TINY)])])
    }
    const to = beta === 1 ? teacher : beta === 0 ? student : mixture()
    const [ofTeacher, ofStudent] = [divergence(q, teacher, to), divergence(p, student, to)]
    const both = () => g.add(g.mul(ofTeacher, g.float(beta)), g.mul(ofStudent, g.float(1 - beta)))
    const elements = beta === 0 ? ofTeacher : beta === 1 ? ofStudent : both()
    const loss = g.op('ReduceSum', [elements], { keepdims: 0 })
    // By the logits: p − q for beta 0, else p·(c − Σ p·c) with c = ln p − ln m, times 1 − beta for a mixture m.
    const slope = (g: Builder) => {
      if (beta === 0) return g.sub(g.op('Exp', [student]), q)
      const centered = g.sub(ofStudent, g.mul(p, g.reduceSum(ofStudent, [1])))
      return beta === 1 ? centered : g.mul(centered, g.float(1 - beta))
    }
    graph.customGradients.set(loss, { inputs: [logits], rule: ({ g, dy }) => [() => g.mul(slope(g), dy)] })
    return loss
  }
}
