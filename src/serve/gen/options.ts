// Made by scripts/generate/options.mjs from the types. Do not edit.

import { type OptionTable, anyOf, needed, OBJECT, NAME, listOf, FUNCTION, ranged, BOOLEAN, eventsOf, oneOf } from '../../core/base/options.js'
import { MODEL, SOURCE, NAMED_ADAPTERS } from '../../api/parts/entry.js'
import { API_KEYS } from '../keys.js'
import { ALIASES } from '../upstream/upstreams.js'

export const HANDLER_OPTIONS: OptionTable = {
  model: needed(anyOf(MODEL, SOURCE)),
  adapters: NAMED_ADAPTERS,
  session: OBJECT,
  servedModelName: anyOf(NAME, listOf(NAME)),
  defaultModel: NAME,
  defaultModelFor: listOf(NAME),
  chatTemplate: NAME,
  apiKeys: API_KEYS,
  hosts: listOf(NAME),
  origins: listOf(NAME),
  resolveAdapter: FUNCTION,
  training: OBJECT,
  maxAdapters: ranged('an integer of at least 1'),
  maxRunning: ranged('an integer of at least 1'),
  maxQueue: ranged('an integer of at least 0'),
  maxTokens: ranged('an integer of at least 1'),
  maxBodyBytes: ranged('an integer of at least 1'),
  timeoutSeconds: ranged('an integer of at least 1'),
  page: BOOLEAN,
  on: eventsOf('request', 'error'),
  aliases: ALIASES,
  fallback: NAME,
  upstreamKey: NAME,
  record: FUNCTION,
}

export const TRAINING_OPTIONS: OptionTable = {
  dtype: anyOf(oneOf('auto'), oneOf('fp32', 'fp16', 'q8', 'int8', 'uint8', 'q4', 'q4f16', 'bnb4', 'q2', 'q2f16', 'q1', 'q1f16'), OBJECT),
  when: oneOf('always', 'idle'),
  threads: ranged('an integer of at least 1'),
  graderModels: OBJECT,
  termsRead: BOOLEAN,
  maxFileBytes: ranged('an integer of at least 1'),
  maxOwnerBytes: ranged('an integer of at least 1'),
  retentionDays: ranged('a finite number above 0'),
  maxJobs: ranged('an integer of at least 1'),
  maxStored: ranged('an integer of at least 1'),
  maxStoredBytes: ranged('an integer of at least 1'),
  storeRequired: BOOLEAN,
  noBackup: BOOLEAN,
}

export const LISTEN_OPTIONS: OptionTable = {
  host: NAME,
  port: ranged('an integer in [0, 65535]'),
  metricsPort: ranged('an integer in [0, 65535]'),
  drainSeconds: ranged('an integer of at least 0'),
}

