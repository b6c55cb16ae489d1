// Audio classification: a label, several, or a number for a sound.

import { DataError, UnsupportedError } from '../base/errors.js'
import { isObject } from '../base/options.js'
import { joinedUp } from '../base/tensor.js'
import { FEATURES } from '../graph/inputs/family.js'
import { dimsOfInput, typeOf } from '../graph/inputs/roles.js'
import type { Model } from '../graph/model-folder.js'
import { readGraph } from '../graph/view/graph.js'
import type { Feeds } from '../runtime/runtime.js'
import { fieldsOf } from '../text/records.js'
import { checkSize, FEATURES_FIELD, featuresOf, HEAR } from './features.js'
import { type Labeled, type LabelOptions, targetOf } from './labels/label-problems.js'
import { type Inputs, labelParts } from './labels/label-task.js'
import type { Task } from './task.js'
import { batchLength } from './token-batch.js'

/** A row of data: a sound as the model reads it. */
export interface SoundExample extends Labeled {
  /** (bands, times), row by row */
  readonly values: Float32Array
}

/** PEFT has no task_type for sounds; its model without a type takes any inputs. */
export const audioClassification: Task<SoundExample, SoundExample, LabelOptions> = {
  name: 'audio-classification',
  peftType: undefined,
  learns: 'to give sounds labels',
  records: [{ input_features: [[0.1, 0.2]], label: 'calm' }],
  use: { pipeline: 'audio-classification', autoClass: 'AutoModelForAudioClassification', onlyMerged: true },
  learningRate: 1e-3,
  ...labelParts('audio', soundInputs),

  parse(row, where) {
    const record = isObject(row) ? row : {}
    const label = targetOf(record.label ?? record.labels)
    const features = record[FEATURES_FIELD]
    if (features !== undefined && label !== undefined) return { values: featuresOf(features, where), label, where }
    throw new DataError({
      where,
      what: 'not a sound with a label',
      expected: `"${FEATURES_FIELD}", (bands, times), and "label"`,
      got: fieldsOf(row),
      hint: record.audio === undefined ? `Name your fields: \`columns: { ${FEATURES_FIELD}: …, label: … }\`` : HEAR,
    })
  },

  encode({ values, label, where }, { model }) {
    return { examples: [{ values: checkSize(values, soundSize(model), where), label, where }], isTruncated: false }
  },
}

export function soundSize({ onnx, config }: Pick<Model, 'onnx' | 'config'>): readonly [number, number] {
  const { inputs } = readGraph(onnx)
  const [input, ...others] = inputs
  const dims = input === undefined ? [] : dimsOfInput(input)
  const { num_mel_bins: bands, max_source_positions: positions } = config
  const size = [dims[1] ?? bands, dims[2] ?? 2 * Number(positions)]
  const isKnown = size.every((length) => Number.isSafeInteger(length)) && dims.length === 3
  if (input?.name === FEATURES && others.length === 0 && typeOf(input) === 'float32' && isKnown) {
    return size as [number, number]
  }
  throw new UnsupportedError({
    where: 'ONNX model',
    what: 'it does not read sounds alone, or they have a form that is not known',
    expected: `one input ${FEATURES}, float32, (batch, bands, times)`,
    got: `inputs ${inputs.map(({ name }) => name).join(', ')}`,
  })
}

export function soundFeeds(sounds: readonly Float32Array[], [bands, times]: readonly [number, number]): Feeds {
  return { [FEATURES]: { type: 'float32', data: joinedUp(sounds), dims: [sounds.length, bands, times] } }
}

function soundInputs(model: Model): Inputs<SoundExample> {
  const size = soundSize(model)
  const [bands, times] = size
  return {
    lengths: [batchLength(FEATURES)],
    zeros: (label) => ({ values: new Float32Array(bands * times), label }),
    feeds(examples) {
      const sounds = examples.map(({ values }) => values)
      return soundFeeds(sounds, size)
    },
    cost: () => Math.ceil(times / 2),
  }
}
