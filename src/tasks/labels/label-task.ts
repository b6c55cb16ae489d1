// Shared by the tasks that give a whole input a label, several, or a number: head, loss and metrics.

import { describe } from '../../base/options.js'
import type { Model } from '../../graph/model-folder.js'
import type { ObjectiveGraph } from '../../graph/training/objective-graph.js'
import type { Value } from '../../graph/view/builder.js'
import type { Feeds, RuntimeTensor } from '../../runtime/runtime.js'
import type { HeadForm } from '../heads/heads.js'
import { namedLabels } from '../heads/heads.js'
import { TrainedHead } from '../heads/trained-head.js'
import type { Evaluated, Examples, HeadOptions, OpenTask } from '../task.js'
import { type LabelOptions, type LabelProblem, type ProblemType, problemOf, type Target } from './label-problems.js'

interface Labeled {
  readonly label: Target
  readonly where: string
}

export abstract class LabelTask<Example extends Labeled> implements OpenTask<Example> {
  readonly labels: readonly string[]
  readonly warnings: readonly string[]
  readonly head: TrainedHead
  abstract readonly probe: OpenTask['probe']
  readonly #problem: LabelProblem

  constructor(model: Model, form: HeadForm, examples: Examples<Example>, options: LabelOptions, heads: HeadOptions) {
    const whereOf = (index: number) => examples.at(index)?.where ?? ''
    const known = heads.newHead ? [] : namedLabels(model.config)
    this.#problem = problemOf(() => targetsOf(examples), known, options, whereOf)
    this.labels = this.#problem.labels
    this.head = new TrainedHead(model, form, this.labels, heads)
    this.warnings = [...this.head.warnings, ...(this.problemType === 'regression' ? [] : rareLabels(examples))]
  }

  get problemType(): ProblemType {
    return this.#problem.type
  }

  abstract cost(example: Example): number
  abstract collate(examples: readonly Example[], length: number): Feeds
  abstract content(example: Example): Iterable<Uint8Array | Int32Array>

  forward(graph: ObjectiveGraph): Value {
    return this.#problem.loss(graph, graph.predict(this.head.logits(graph, this.head.input(graph))))
  }

  checkEvaluation({ label, where }: Example): void {
    this.#problem.check(label, `${where}, label`)
  }

  normalizer(examples: readonly Example[]): number {
    return this.#problem.normalizer([...targetsOf(examples)])
  }

  predict(outputs: Readonly<Record<string, RuntimeTensor>>, examples: readonly Example[]): Float32Array[] {
    const logits = Object.values(outputs).find(({ dims }) => dims.length === 2)?.data as Float32Array
    const count = this.labels.length
    return examples.map((_, row) => logits.slice(row * count, (row + 1) * count))
  }

  metrics({ examples, predictions }: Evaluated<Example>): Record<string, number> {
    return this.#problem.metrics([...targetsOf(examples)], predictions as Float32Array[])
  }

  protected targetFeeds(examples: readonly Example[]): Feeds {
    return this.#problem.targets([...targetsOf(examples)])
  }

  /** One that the loss takes. */
  protected get anyTarget(): Target {
    return this.problemType === 'regression' ? 0 : this.labels[0]
  }
}

export function labelBytes(label: Target): Uint8Array {
  return new TextEncoder().encode(typeof label === 'string' ? label : JSON.stringify(label))
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

function* targetsOf(examples: Iterable<Labeled>): Generator<Target> {
  for (const { label } of examples) yield label
}
