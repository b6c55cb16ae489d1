// All providers, by their names.

import { ConfigError } from '../../core/base/errors.js'
import { azure } from './azure.js'
import { openai } from './openai.js'
import type { Provider } from './provider.js'
import { together } from './together.js'

const PROVIDERS: Readonly<Record<string, Provider>> = { openai, azure, together }

export function providerOf(name: string): Provider {
  if (Object.hasOwn(PROVIDERS, name)) return PROVIDERS[name]
  throw new ConfigError({
    where: 'provider',
    what: 'not known',
    expected: Object.keys(PROVIDERS).join(', '),
    got: name,
  })
}
