// How this program loads what is not on its machine: said once, for all calls.

import { ConfigError } from '../base/errors.js'
import { checkOptions, FUNCTION, kind, NAME, type OptionTable } from '../base/options.js'
import type { RemoteOptions } from '../io/hub/directory.js'

/** Options of {@link configureHub}. */
export type HubOptions = Pick<RemoteOptions, 'endpoint' | 'token' | 'onDownload' | 'onWarning'>

const ENDPOINT = kind('an address such as https://huggingface.co', (value) => /^https?:\/\/[^/]/.test(String(value)))

const OPTIONS: OptionTable<HubOptions> = {
  endpoint: ENDPOINT,
  token: NAME,
  onDownload: FUNCTION,
  onWarning: FUNCTION,
}

let current: HubOptions = {}

/**
 * Sets options for all later downloads. Options that you leave out do not change. `undefined` restores the default.
 *
 * @throws ConfigError when an option is unknown or not valid
 *
 * @example
 * configureHub({
 *   onDownload: ({ name, byteLength, receivedBytes }) => console.log(`${name}: ${receivedBytes} of ${byteLength} bytes`),
 * })
 */
export function configureHub(options: HubOptions = {}): void {
  checkOptions(options, { of: 'configureHub', table: OPTIONS })
  const { endpoint } = options
  if (endpoint !== undefined && !URL.canParse(endpoint)) {
    throw new ConfigError({ where: 'endpoint', what: 'not valid', expected: ENDPOINT.expected, got: endpoint })
  }
  current = { ...current, ...options, ...(endpoint !== undefined && { endpoint: endpoint.replace(/\/+$/, '') }) }
}

/** What {@link configureHub} was told. */
export function hubOptions(): HubOptions {
  return current
}
