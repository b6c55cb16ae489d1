// A label, several, or a number for a text or a pair of texts, by a head that is trained whole.

import { DataError } from '../../core/base/errors.js'
import { objectOf } from '../../core/base/options.js'
import type { HeadBase } from '../../model/heads/heads.js'
import { type EncodedTexts, encoderFeeds, encodeTexts } from '../../model/inputs/token-batch.js'
import type { Model } from '../../model/model-folder.js'
import { fieldsOf } from '../../model/text/records.js'
import { type Labeled, type LabelOptions, targetOf } from './labels/label-problems.js'
import { type Inputs, labelParts } from './labels/label-task.js'
import type { Task } from './task.js'
import { tokenProbe } from './token-probe.js'

export interface LabeledText extends Labeled {
  readonly text: string
  readonly textPair: string | undefined
}

export type LabeledExample = Labeled & Omit<EncodedTexts, 'isTruncated'>

export const textClassification: Task<LabeledText, LabeledExample, LabelOptions> = {
  name: 'text-classification',
  peftType: 'SEQ_CLS',
  learns: 'to give texts labels',
  records: [
    { text: 'The sea was calm.', label: 'good' },
    { text: 'The sea was calm.', labels: ['good', 'sea'] },
    { text: 'The sea was calm.', textPair: 'The water lay still.', label: 'same' },
  ],
  use: {
    command: ['classify', '--text', 'The'],
    pipeline: 'text-classification',
    autoClass: 'AutoModelForSequenceClassification',
  },
  page: {
    lesson: 'The adapter will learn labels for texts.',
    unit: 'tokens',
    settings: { maxSteps: 100, learningRate: 0.002, batchSize: 8 },
  },
  learningRate: 3e-4,
  ...labelParts('text', textInputs),

  parse: parseLabeledText,

  encode({ text, textPair, label, where }, { model, maxLength }) {
    const { isTruncated, ...tokens } = encodeTexts(model, text, textPair, maxLength)
    return { examples: [{ ...tokens, label, where }], isTruncated }
  },

  tokens: ({ inputIds, label }) => ({ ids: inputIds, counts: () => false, label: [label].flat().join(', ') }),
}

function parseLabeledText(row: unknown, where: string): LabeledText {
  const record = objectOf(row)
  const { text, textPair } = record
  const label = targetOf(record.label ?? record.labels)
  const isPair = textPair === undefined || textPair === null || typeof textPair === 'string'
  const empty = Object.entries({ text, textPair }).find(([, value]) => typeof value === 'string' && value.trim() === '')
  if (empty !== undefined) {
    throw new DataError({ where, what: `${empty[0]} is empty`, hint: 'Leave such records out, or give them a text' })
  }
  if (typeof text === 'string' && label !== undefined && isPair) {
    return { text, textPair: textPair ?? undefined, label, where }
  }
  throw new DataError({
    where,
    what: 'not a text with a label',
    expected: '"text", "label" and, for pairs, "textPair": texts; a label may be a number, or a list of labels',
    got: fieldsOf(record),
    hint: 'If the fields have other names, give them with `columns: { text: …, label: … }`',
  })
}

function textInputs(model: Model, { graph }: HeadBase): Inputs<LabeledExample> {
  return {
    ...tokenProbe(graph),
    zeros: (label, sequence) => {
      return { inputIds: new Int32Array(sequence), tokenTypeIds: new Int32Array(sequence), label }
    },
    feeds: encoderFeeds(model, graph),
    cost: ({ inputIds }) => inputIds.length,
  }
}
