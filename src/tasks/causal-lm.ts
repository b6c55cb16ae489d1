// Causal language modeling: each token is predicted from those before it. Rows are {"text"}, every token of which is a target, or
// {"prompt", "completion"}, where the completion's tokens are. The loss is the cross-entropy in nats per target.

import { DataError, FormatError, UnsupportedError } from '../base/errors.js'
import { TensorProto_DataType as DataType } from '../formats/onnx/gen/onnx_pb.js'
import { tokenInputs } from '../graph/inputs/tokens.js'
import { logitsName } from '../graph/match/linears.js'
import type { CausalModel } from '../graph/model-folder.js'
import type { ProbedShape } from '../graph/shapes/shapes.js'
import type { ObjectiveGraph } from '../graph/training/objective-graph.js'
import type { Value } from '../graph/view/builder.js'
import { Graph } from '../graph/view/graph.js'
import type { Feeds } from '../runtime/runtime.js'
import type { TextRecord } from '../text/records.js'
import { checkRecord, checkVocabulary, countTargets, type Example, encodeRecord, IGNORED } from '../text/records.js'
import type { Encoded, OpenTask, Task } from './task.js'
import { attentionMask, ownLength, PROBE_BATCHES, padded, tokenLengths } from './token-batch.js'

/** Graph inputs of the loss: rows with a target int64 (m), [row, target] int64 (m, 2). */
const ROWS = 'loss/rows'
const TARGETS = 'loss/targets'

/** Rows with a target where shapes are measured. */
const PROBED_TARGETS = [4, 11] as const

export const causalLm: Task<TextRecord, Example> = {
  name: 'causal-lm',
  peftType: 'CAUSAL_LM',

  parse: checkRecord,

  encode(record, { model, maxLength }): Encoded<Example> {
    const [eosTokenId] = model.eosTokenIds
    if (eosTokenId === undefined) {
      throw new FormatError({
        where: model.tokenizer.name,
        what: 'no file names the token that ends a text',
        hint: 'Add eos_token to tokenizer_config.json, or eos_token_id to config.json',
      })
    }
    const { inputIds, labels } = encodeRecord(record, model.tokenizer, eosTokenId)
    checkVocabulary(inputIds, model)
    const example = { inputIds: inputIds.slice(0, maxLength), labels: labels.slice(0, maxLength) }
    return {
      examples: countTargets(example.labels) > 0 ? [example] : [],
      isTruncated: inputIds.length > maxLength,
    }
  },

  open: (model) => new CausalLm(model),
}

class CausalLm implements OpenTask<Example> {
  readonly probe: OpenTask['probe']
  readonly #model: CausalModel
  readonly #inputs: ReturnType<typeof tokenInputs>

  constructor(model: CausalModel) {
    this.#model = model
    this.#inputs = tokenInputs(new Graph(model.onnx.proto))
    const [first, second] = PROBE_BATCHES.map(({ batch, sequence }, i) =>
      this.#probeFeeds(batch, sequence, PROBED_TARGETS[i]),
    )
    const lengths = [...tokenLengths(), ownLength('targets', PROBED_TARGETS, { input: ROWS, axis: 0 })]
    this.probe = { feeds: [first, second], lengths }
  }

  forward(graph: ObjectiveGraph): Value {
    const rows = graph.input(ROWS, DataType.INT64, ['targets'])
    const targets = graph.input(TARGETS, DataType.INT64, ['targets', 2])
    const choice = graph.chooseRows(logitsName(graph), rows)
    graph.check((shapeOf) => void checkAllTokens(shapeOf(choice.all)))
    return graph.crossEntropy(choice.chosen, targets)
  }

  cost({ inputIds }: Example): number {
    return inputIds.length
  }

  collate(examples: readonly Example[], length: number): Feeds {
    const ids = examples.map(({ inputIds }) => inputIds)
    const labels = padded(
      examples.map((example) => example.labels),
      length,
      IGNORED,
    )
    return {
      ...this.#feeds(examples.length, length, padded(ids, length, this.#model.padTokenId), attentionMask(ids, length)),
      ...targetFeeds(labels, length),
    }
  }

  normalizer(examples: readonly Example[]): number {
    return examples.reduce((sum, { labels }) => sum + countTargets(labels), 0)
  }

  content({ inputIds, labels }: Example): Int32Array[] {
    return [inputIds, labels]
  }

  metrics({ loss }: { loss: number }): Record<string, number> {
    return { perplexity: Math.exp(loss) }
  }

  #feeds(batch: number, sequence: number, inputIds: Int32Array, mask: Int32Array): Feeds {
    const tokens = { batch, sequence, inputIds, attentionMask: mask }
    return { ...this.#inputs.feeds(tokens), ...this.#inputs.emptyCache(batch) }
  }

  /** All targets at the first row: it is there in models that compute logits of the last tokens alone, too. */
  #probeFeeds(batch: number, sequence: number, targets: number): Feeds {
    const ids = new Int32Array(batch * sequence)
    return {
      ...this.#feeds(batch, sequence, ids, ids.slice().fill(1)),
      ...rowFeeds(Array(targets).fill(0), Array(targets).fill(0)),
    }
  }
}

/**
 * The positions that predict a target, and which: position i predicts label i + 1 of its row.
 *
 * @param labels (rows, length)
 */
export function targetFeeds(labels: ArrayLike<number>, length: number): Feeds {
  const rows: number[] = []
  const targets: number[] = []
  for (let i = 0; i < labels.length - 1; i++) {
    const isLast = (i + 1) % length === 0
    if (isLast || labels[i + 1] < 0) continue
    targets.push(labels[i + 1])
    rows.push(i)
  }
  if (rows.length === 0) throw new DataError({ where: 'batch', what: 'no position has a target' })
  return rowFeeds(rows, targets)
}

function rowFeeds(rows: readonly number[], targets: readonly number[]): Feeds {
  const pairs = targets.flatMap((target, row) => [row, target])
  return {
    [ROWS]: { type: 'int64', data: BigInt64Array.from(rows, BigInt), dims: [rows.length] },
    [TARGETS]: { type: 'int64', data: BigInt64Array.from(pairs, BigInt), dims: [rows.length, 2] },
  }
}

/** Throws UnsupportedError unless there is a row of logits for each token. */
function checkAllTokens(shape: ProbedShape | undefined): void {
  const counts = [shape?.dims[0], shape?.other[0]]
  if (PROBE_BATCHES.every(({ batch, sequence }, i) => counts[i] === batch * sequence)) return
  throw new UnsupportedError({
    where: 'ONNX model',
    what: 'it gives logits of some tokens only, such as the last one, where training needs those of all',
    expected: 'logits (batch, sequence, vocabulary)',
    got: `${counts[0]} rows of logits for 2 sequences of 3 tokens`,
    hint: 'Export the model anew without the option that cuts the logits (prune_lm_head, num_logits_to_keep)',
  })
}
