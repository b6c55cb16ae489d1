// Made by scripts/generate/options.mjs from the types. Do not edit.

import { type OptionTable, anyOf, needed, OBJECT, NAME, listOf, FUNCTION, ranged, BOOLEAN } from '../../base/options.js'
import { MODEL, SOURCE, NAMED_ADAPTERS } from '../../index/source-values.js'
import { API_KEYS } from '../keys.js'

export const HANDLER_OPTIONS: OptionTable = {
  model: needed(anyOf(MODEL, SOURCE)),
  adapters: NAMED_ADAPTERS,
  session: OBJECT,
  servedModelName: anyOf(NAME, listOf(NAME)),
  chatTemplate: NAME,
  apiKeys: API_KEYS,
  hosts: listOf(NAME),
  origins: listOf(NAME),
  resolveAdapter: FUNCTION,
  maxAdapters: ranged('an integer of at least 1'),
  maxRunning: ranged('an integer of at least 1'),
  maxQueue: ranged('an integer of at least 0'),
  maxTokens: ranged('an integer of at least 1'),
  maxBodyBytes: ranged('an integer of at least 1'),
  timeoutSeconds: ranged('an integer of at least 1'),
  page: BOOLEAN,
  onRequest: FUNCTION,
  onError: FUNCTION,
}

export const LISTEN_OPTIONS: OptionTable = {
  host: NAME,
  port: ranged('an integer in [0, 65535]'),
  metricsPort: ranged('an integer in [0, 65535]'),
  drainSeconds: ranged('an integer of at least 0'),
}

