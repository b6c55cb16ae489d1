// The examples of a trainer: records, or token ids with a weight, an advantage and log-probabilities for each token.

import { DataError } from '../../core/base/errors.js'
import { isObject } from '../../core/base/options.js'
import { type Example, IGNORED } from '../../model/text/records.js'
import type { DataRecord } from '../options.js'
import { encodeRow } from '../rows/examples.js'
import type { AnswerExample } from '../tasks/dpo.js'
import type { EncodeContext, Task } from '../tasks/task.js'
import type { LossRow } from './losses.js'

type Numbers = Readonly<ArrayLike<number>>

/** Tokens to learn from. All lists have one value for each of the n tokens of `ids`. */
export interface TokenExample {
  /** The tokens that the model reads. The first is never a target, because nothing predicts it. */
  readonly ids: Numbers
  /** The token that should stand at each position. Default: `ids`. */
  readonly targets?: Numbers | undefined
  /** Factors of the tokens' losses; a token with 0 is not a target. Default: 1. */
  readonly weights?: Numbers | undefined
  /** ln(probability) of each token when it was sampled. */
  readonly logprobs?: Numbers | undefined
  /** ln(probability) of each token by a reference, such as a teacher. For `dpo` the default is the model as it
   * was when the trainer was opened. */
  readonly reference?: Numbers | undefined
  /** How much better than expected: one number, or one for each token. */
  readonly advantages?: Numbers | number | undefined
}

/** An example of a trainer: token ids, or a record in a form of {@link train}. */
export type TrainerExample = TokenExample | DataRecord

/** An example with all that a loss needs, except the log-probabilities that the model gives it. */
export interface EncodedExample extends Example {
  readonly targets: Omit<LossRow, 'logprobs' | 'entropies'>
}

export async function encodeExamples(
  examples: readonly TrainerExample[],
  task: Task,
  context: EncodeContext,
): Promise<EncodedExample[]> {
  const located = examples.map((record, i): Located => ({ record, where: `example ${i + 1}` }))
  const records = located.filter(({ record }) => !isTokens(record))
  const ofRecords = records.length === 0 ? [] : await encodeRecords(records, task, context)
  return located.flatMap((example) => {
    const { record, where } = example
    return isTokens(record) ? [encodeTokens(record, where, context)] : ofRecords[records.indexOf(example)]
  })
}

interface Located {
  readonly record: TrainerExample
  readonly where: string
}

function isTokens(example: TrainerExample): example is TokenExample {
  return isObject(example) && 'ids' in example
}

function encodeTokens(example: TokenExample, where: string, { model, maxLength }: EncodeContext): EncodedExample {
  const { ids, advantages } = example
  const { length } = ids
  const list = (name: 'targets' | 'weights' | 'logprobs' | 'reference' | 'advantages') => {
    const values = example[name]
    if (values === undefined || typeof values === 'number' || values.length === length) return values
    throw new DataError({
      where: `${where}, ${name}`,
      what: 'not as long as ids',
      expected: `${length}`,
      got: `${values.length}`,
    })
  }
  if (length > maxLength) {
    throw new DataError({ where, what: 'too many tokens', expected: `at most ${maxLength}`, got: `${length}` })
  }
  const { vocabularySize = Number.POSITIVE_INFINITY } = model
  const targets = (list('targets') as Numbers | undefined) ?? ids
  for (const id of [...Array.from(ids), ...Array.from(targets)]) {
    if (Number.isInteger(id) && id >= 0 && id < vocabularySize) continue
    throw new DataError({ where, what: 'no token has this id', expected: `below ${vocabularySize}`, got: `${id}` })
  }
  const weights = list('weights') as Numbers | undefined
  const counted = Array.from({ length }, (_, i) => i).filter((i) => i > 0 && (weights?.[i] ?? 1) !== 0)
  const pick = (values: Numbers | number | undefined) => {
    if (values === undefined) return undefined
    return Float32Array.from(counted, (i) => (typeof values === 'number' ? values : values[i]))
  }
  const labels = new Int32Array(length).fill(IGNORED)
  for (const i of counted) labels[i] = targets[i]
  return {
    inputIds: Int32Array.from(ids),
    labels,
    targets: {
      tokens: Int32Array.from(counted, (i) => targets[i]),
      weights: pick(weights ?? 1)!,
      oldLogprobs: pick(list('logprobs')),
      reference: pick(list('reference')),
      advantages: pick(list('advantages') ?? advantages),
    },
  }
}

/** The examples of the tasks that a trainer knows: a text, or a pair of answers. */
type TaskExample = Example | AnswerExample

/** Records of `dpo` become two examples each. */
async function encodeRecords(records: readonly Located[], task: Task, context: EncodeContext) {
  const all: TaskExample[][] = []
  for (const { record, where } of records) {
    const { encoded } = await encodeRow(task, record, where, context)
    all.push(encoded.examples as TaskExample[])
  }
  return all.map((list) => {
    return list.flatMap((example) => {
      return 'chosen' in example ? [example.chosen, example.rejected].map(withTargets) : [withTargets(example)]
    })
  })
}

function withTargets({ inputIds, labels }: Example): EncodedExample {
  const tokens = labels.subarray(1).filter((label) => label !== IGNORED)
  const weights = new Float32Array(tokens.length).fill(1)
  const rest = { oldLogprobs: undefined, reference: undefined, advantages: undefined }
  return { inputIds, labels, targets: { tokens, weights, ...rest } }
}
