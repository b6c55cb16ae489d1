// Options for all downloads of this program, which are set once.

import { checkOptions } from '../core/base/options.js'
import type { OnDownload, RemoteOptions } from '../files/io/hub/directory.js'
import { HUB_OPTIONS } from './gen/run-options.js'

/** Callbacks of downloads. If one throws an error, the download stops. */
export interface DownloadEvents {
  /** Called before each download and while it runs. */
  download?: OnDownload
}

/** Callbacks of {@link configureHub}. */
export interface HubEvents extends DownloadEvents {
  /** Called when the Hub cannot be reached and the cache is used, and when a file cannot be stored. */
  warning?(message: string): void
}

/** Options of {@link configureHub}. */
export interface HubOptions extends Pick<RemoteOptions, 'endpoint' | 'token'> {
  /** Callbacks. Default in Node: a bar on a terminal for downloads that take over 2 s, else none. `{}` is silent. */
  readonly on?: HubEvents | undefined
}

let current: HubOptions = {}

/**
 * Sets options for all later downloads. Options that you leave out do not change. `undefined` restores the default.
 *
 * @throws ConfigError when an option is unknown or not valid
 *
 * @example
 * configureHub({
 *   on: { download: ({ name, byteLength }) => console.log(`${name}: ${byteLength} bytes`) },
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

/** Callbacks as the code that downloads takes them. */
export function hearing({ download, ...rest }: HubEvents): Pick<RemoteOptions, 'onDownload' | 'onWarning'> {
  return { onDownload: download, ...('warning' in rest && { onWarning: rest.warning }) }
}
