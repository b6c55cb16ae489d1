// The fields of bodies about files, fine-tuning and aliases, as OpenAI has them.

import {
  anyOf,
  BOOLEAN,
  COUNT,
  INTEGER,
  isObject,
  type Kind,
  kind,
  needed,
  OBJECT,
  oneOf,
  ranged,
} from '../../core/base/options.js'
import { type FieldTable, field, jsonOf, METADATA, NAMED, only, SHORT } from '../fields.js'

/** A grader may have grading instructions with examples, and options of a task the names of its labels. */
const [MAX_GRADER, MAX_TASK_OPTIONS] = [1 << 16, 1 << 14]
const GRADER = jsonOf(MAX_GRADER, OBJECT)

const AUTO = oneOf('auto')
const POSITIVE = ranged('a finite number above 0')

export const HYPERPARAMETERS: Readonly<Record<string, Kind>> = {
  n_epochs: anyOf(AUTO, ranged('an integer in [1, 1000]')),
  batch_size: anyOf(AUTO, ranged('an integer in [1, 4096]')),
  learning_rate_multiplier: anyOf(AUTO, POSITIVE),
  beta: anyOf(AUTO, POSITIVE),
  compute_multiplier: anyOf(AUTO, POSITIVE),
  eval_interval: AUTO,
  eval_samples: AUTO,
  reasoning_effort: oneOf('default'),
}

/** The members of `lowrank` in a job: a method and options of `lowrank train` that OpenAI's API does not have. */
export const LOWRANK: Readonly<Record<string, Kind>> = {
  method: oneOf('kto'),
  rank: ranged('an integer in [1, 256]'),
  alpha: POSITIVE,
  dropout: ranged('a number in [0, 1]'),
  useRslora: BOOLEAN,
  learningRate: ranged('a number in (0, 10]'),
  schedule: oneOf('cosine', 'linear', 'constant'),
  warmupRatio: ranged('a number in [0, 1]'),
  weightDecay: ranged('a number in [0, 1]'),
  gradientAccumulation: COUNT,
  maxLength: ranged('an integer of at least 2'),
  packing: BOOLEAN,
  maxSteps: COUNT,
  taskOptions: jsonOf(MAX_TASK_OPTIONS, OBJECT),
  gate: kind('{ "alias": NAME, "metric": "loss" }', (value) => {
    const { alias, metric = 'loss', ...others } = isObject(value) ? value : {}
    return NAMED.accepts(alias) && NAMED.accepts(metric) && Object.keys(others).length === 0
  }),
}

/** An object whose members are those of a table. */
const members = (table: Readonly<Record<string, Kind>>): Kind =>
  kind(`an object with any of ${Object.keys(table).join(', ')}`, (value) => {
    if (!isObject(value)) return false
    return Object.entries(value).every(([name, set]) => Object.hasOwn(table, name) && table[name].accepts(set))
  })

const hyperparameters = members(HYPERPARAMETERS)
const METHODS = ['supervised', 'dpo', 'reinforcement']

const METHOD = kind(
  '{ "type": "supervised", "supervised": { "hyperparameters": {…} } }, the same with "dpo", or with "reinforcement" and a "grader", ' +
    `${GRADER.expected}`,
  (value) => {
    if (!isObject(value) || !METHODS.includes(value.type as string)) return false
    const { type, ...others } = value
    const set = others[type as string] ?? {}
    const isAlone = Object.entries(others).every(([name, other]) => name === type || other === null)
    if (!isAlone || !isObject(set)) return false
    if (type === 'reinforcement' ? !GRADER.accepts(set.grader) : set.grader !== undefined) return false
    const { hyperparameters: given = {}, grader: _, ...rest } = set
    return Object.keys(rest).length === 0 && hyperparameters.accepts(given)
  },
)

const FILE = kind('the id of a file', (value) => typeof value === 'string' && /^file-\w{1,64}$/.test(value))
const SECONDS = ranged('an integer in [3600, 2592000]')
const EXPIRY = kind(`{ "anchor": "created_at", "seconds": ${SECONDS.expected} }`, (value) => {
  const { anchor, seconds, ...others } = isObject(value) ? value : {}
  return anchor === 'created_at' && SECONDS.accepts(seconds) && Object.keys(others).length === 0
})

export const JOB_FIELDS: FieldTable = {
  model: field(needed(SHORT), 'the base, or a model that a job made, which is trained further'),
  training_file: field(
    needed(FILE),
    'the records: chats, prompts with completions, pairs of answers, or prompts alone',
  ),
  validation_file: field(FILE, 'records on which the loss is measured, or with `reinforcement` the reward'),
  method: field(METHOD, 'how it learns. Default: supervised'),
  hyperparameters: field(hyperparameters, 'the same as those of `method`; each may be "auto"'),
  suffix: field(
    kind('1 to 64 letters, digits, - or _', (value) => typeof value === 'string' && /^[\w-]{1,64}$/.test(value)),
    'a part of the name of the new model',
  ),
  seed: field(INTEGER, 'the same seed gives the same model'),
  metadata: field(METADATA, 'comes back in the job, and lists can be filtered by it'),
  lowrank: field(members(LOWRANK), 'beyond OpenAI’s API: `method: "kto"`, and options of `lowrank train`'),
  integrations: only('nothing'),
}

const STORED = kind('{ "from": "stored", "metadata": {…}, "method": "supervised" or "kto" }', (value) => {
  const { from, metadata = {}, method = 'kto', ...others } = isObject(value) ? value : {}
  const isMethod = method === 'supervised' || method === 'kto'
  return from === 'stored' && METADATA.accepts(metadata) && isMethod && Object.keys(others).length === 0
})

/** The other fields of the form that uploads a file. */
export const FILE_FIELDS: FieldTable = {
  purpose: field(needed(oneOf('fine-tune')), 'what the file is for'),
  expires_after: field(EXPIRY, 'when the file goes by itself'),
}
/** The JSON that makes a file of stored chats. */
export const STORED_FIELDS: FieldTable = {
  purpose: FILE_FIELDS.purpose,
  lowrank: field(needed(STORED), 'which stored chats become records, and for which method'),
}

export const METADATA_FIELDS: FieldTable = {
  metadata: field(METADATA, 'takes the place of the metadata; `rating` is `good` or `bad`'),
}

export const ALIAS_FIELDS: FieldTable = {
  name: field(needed(NAMED), 'the new name'),
  model: field(needed(SHORT), 'the model that answers under this name from now on'),
}
