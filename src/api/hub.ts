// Options for all downloads of this program, which are set once.

import { checkOptions } from '../core/base/options.js'
import type { RemoteOptions } from '../files/io/hub/directory.js'
import { HUB_OPTIONS } from './gen/run-options.js'

/** Options of {@link configureHub}. */
export type HubOptions = Pick<RemoteOptions, 'endpoint' | 'token' | 'onDownload' | 'onWarning'>

let current: HubOptions = {}

/**
 * Sets options for all later downloads. Options that you leave out do not change. `undefined` restores the default.
 *
 * @throws ConfigError when an option is unknown or not valid
 *
 * @example
 * configureHub({
 *   onDownload: ({ name, byteLength }) => console.log(`${name}: ${byteLength} bytes`),
 * })
 */
export function configureHub(options: HubOptions = {}): void {
  checkOptions(options, 'configureHub', HUB_OPTIONS)
  const { endpoint } = options
  current = { ...current, ...options, ...(endpoint !== undefined && { endpoint: endpoint.replace(/\/+$/, '') }) }
}

export function hubOptions(): HubOptions {
  return current
}
