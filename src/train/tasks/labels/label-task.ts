// Shared by the tasks with a head for labels: head, loss and metrics.

import { describe } from '../../../core/base/options.js'
import type { HeadKind } from '../../../model/families/family.js'
import { requireHead } from '../../../model/heads/head-forms.js'
import { type HeadBase, namedLabels } from '../../../model/heads/heads.js'
import type { Model } from '../../../model/model-folder.js'
import type { Feeds } from '../../../onnx/runtime/runtime.js'
import type { Value } from '../../../onnx/view/builder.js'
import type { Length, ObjectiveGraph } from '../../graph/objective-graph.js'
import { LABEL_OPTIONS } from '../gen/options.js'
import type { Evaluated, Examples, OpenTask, Task } from '../task.js'
import { PROBE_BATCHES, predictedRows, type TokenProbe } from '../token-probe.js'
import { checkHead, type HeadOptions, headBase, TrainedHead } from '../trained-head.js'
import { type Labeled, type LabelOptions, type LabelProblem, problemOf, type Target } from './label-problems.js'

export interface Inputs<Example> extends Partial<TokenProbe> {
  readonly lengths: readonly Length[]
  /** An example of zeros, for the two runs that measure shapes. */
  zeros(label: Target, sequence: number, row: number): Omit<Example, 'where'>
  feeds(examples: readonly Example[], length: number): Feeds
  cost(example: Example): number
}

/** Throws UnsupportedError for a model without these inputs. */
export type InputsOf<Example> = (model: Model, base: HeadBase) => Inputs<Example>

export function headParts<Example>(kind: HeadKind, inputsOf: InputsOf<Example>): Pick<Task, 'check'> {
  return {
    check(model) {
      const base = headBase(model)
      inputsOf(model, base)
      checkHead(requireHead(kind, base), base)
    },
  }
}

/** The members of a task that labels whole inputs. */
export function labelParts<Example extends Labeled>(kind: HeadKind, inputsOf: InputsOf<Example>) {
  return {
    ...headParts(kind, inputsOf),
    options: LABEL_OPTIONS,
    open: (model: Model, examples: Examples<Example>, options: LabelOptions = {}, heads: HeadOptions = {}) =>
      new LabelTask(kind, inputsOf, { model, examples, options, heads }),
  }
}

export interface Opening<Example> {
  readonly model: Model
  readonly examples: Examples<Example>
  readonly options: LabelOptions
  readonly heads: HeadOptions
  /** Names of the labels. Default: from config.json. */
  readonly known?: readonly string[]
}

export abstract class HeadTask<Example extends Pick<Labeled, 'where'>> implements OpenTask<Example> {
  readonly labels: readonly string[]
  readonly warnings: readonly string[]
  readonly head: TrainedHead
  readonly probe: OpenTask['probe']
  protected readonly problem: LabelProblem
  readonly #inputs: Inputs<Example>

  /** `field`: the field of a record that holds the targets, for messages. */
  constructor(
    kind: HeadKind,
    inputsOf: InputsOf<Example>,
    { model, examples, options, heads, known }: Opening<Example>,
    private readonly field: 'label' | 'tags',
    private readonly targetsOf: (example: Example) => readonly Target[],
  ) {
    const base = headBase(model)
    this.#inputs = inputsOf(model, base)
    const whereOf = field === 'label' ? (index: number) => examples.at(index)?.where ?? '' : undefined
    const names = known ?? (heads.newHead ? [] : namedLabels(model.config))
    this.problem = problemOf(() => flat(examples, targetsOf), names, options, whereOf)
    this.labels = this.problem.labels
    this.head = new TrainedHead(model, base, requireHead(kind, base), this.labels, heads)
    this.warnings = this.head.warnings
    const any = this.problem.type === 'regression' ? 0 : this.labels[0]
    const [first, second] = (this.#inputs.batches ?? PROBE_BATCHES).map(({ batch, sequence }) => {
      const probe = Array.from({ length: batch }, (_, row) => this.#inputs.zeros(any, sequence, row))
      return this.collate(probe as Example[], sequence)
    })
    this.probe = { feeds: [first, second], lengths: this.#inputs.lengths }
  }

  abstract forward(graph: ObjectiveGraph): Value
  abstract predict(outputs: Readonly<Feeds>, examples: readonly Example[]): unknown[]
  abstract metrics(result: Evaluated<Example>): Record<string, number>

  checkEvaluation(example: Example): void {
    for (const target of this.targetsOf(example)) this.problem.check(target, `${example.where}, ${this.field}`)
  }

  cost(example: Example): number {
    return this.#inputs.cost(example)
  }

  collate(examples: readonly Example[], length: number): Feeds {
    return { ...this.#inputs.feeds(examples, length), ...this.problem.targets(this.targets(examples)) }
  }

  normalizer(examples: readonly Example[]): number {
    return this.problem.normalizer(this.targets(examples))
  }

  protected targets(examples: readonly Example[]): Target[] {
    return [...flat(examples, this.targetsOf)]
  }
}

class LabelTask<Example extends Labeled> extends HeadTask<Example> {
  override readonly warnings: readonly string[]
  readonly problemType: LabelProblem['type']

  constructor(kind: HeadKind, inputsOf: InputsOf<Example>, opening: Opening<Example>) {
    super(kind, inputsOf, opening, 'label', ({ label }) => [label])
    this.problemType = this.problem.type
    this.warnings = [...this.head.warnings, ...(this.problemType === 'regression' ? [] : rareLabels(opening.examples))]
  }

  forward(graph: ObjectiveGraph): Value {
    return this.problem.loss(graph, graph.predict(this.head.logits(graph, this.head.input(graph))))
  }

  override predict = predictedRows

  metrics({ examples, predictions }: Evaluated<Example>): Record<string, number> {
    return this.problem.metrics(this.targets(examples), predictions as Float32Array[])
  }
}

const TOLD = 5

function rareLabels(examples: Iterable<Labeled>): string[] {
  const seen = new Map<string, { where: string; count: number }>()
  for (const { label: target, where } of examples) {
    for (const label of new Set([target].flat().map(String))) {
      const { count = 0 } = seen.get(label) ?? {}
      seen.set(label, { where, count: count + 1 })
    }
  }
  const rare = [...seen].filter(([, { count }]) => count === 1)
  if (rare.length === 0) return []
  const told = rare.slice(0, TOLD).map(([label, { where }]) => `${describe(label)} (${where})`)
  const more = rare.length > TOLD ? `, and ${rare.length - TOLD} more` : ''
  return [`labels that one record alone has, so that there is little to learn of them: ${told.join(', ')}${more}`]
}

export function* flat<Example, T>(examples: Iterable<Example>, of: (example: Example) => readonly T[]): Generator<T> {
  for (const example of examples) yield* of(example)
}
