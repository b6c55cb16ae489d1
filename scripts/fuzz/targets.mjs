// All targets by name.

import { targets as adapters } from './targets/adapters.mjs'
import { targets as exchange } from './targets/exchange.mjs'
import { targets as formats } from './targets/formats.mjs'
import { targets as graphs } from './targets/graphs.mjs'
import { targets as requests } from './targets/requests.mjs'
import { targets as texts } from './targets/texts.mjs'

export const targets = new Map(
  [formats, adapters, exchange, graphs, texts, requests].flat().map((target) => [target.name, target]),
)
