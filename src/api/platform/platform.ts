// The parts of the API that Node and browsers do differently. It assumes a browser until api/node.ts sets Node's parts.

import type { ByteSource, Directory, Place } from '../../core/base/bytes.js'
import { ConfigError } from '../../core/base/errors.js'
import { checkArgument, NAME } from '../../core/base/options.js'
import type { OnDownload, RemoteOptions } from '../../files/io/hub/directory.js'
import type { OpenJob } from '../../merge/merge.js'
import type { MergeEvents } from '../../merge/settings.js'
import type { DecodeImage } from '../../model/images/image.js'
import type { ExampleFile } from '../../model/text/example-store.js'
import type { RuntimeHost } from '../../onnx/runtime/host.js'
import type { Grader } from '../../train/loop/graders/forms.js'
import type { Reward } from '../../train/loop/graders/rewards.js'
import type { MemoryUse, TrainEvents } from '../../train/report.js'
import { hubOptions } from '../hub.js'

export interface Platform {
  open(text: string, where: string, options: RemoteOptions): Promise<Place>
  openData(text: string, where: string): Promise<ByteSource | Directory>
  target(text: string, where: string): Directory
  openJob?(): Promise<OpenJob>
  hubAccess(): Promise<{ endpoint: string; token: string | undefined; isOffline?: boolean }>
  defaultRuntime(): RuntimeHost
  readonly decodeImage: DecodeImage
  /** Shows the progress of a training, a merge, or downloads, if standard error is a terminal. */
  watch?(): TrainEvents | undefined
  watchMerge?(): MergeEvents | undefined
  watchDownloads?(): OnDownload | undefined
  /** Returns the bytes of free memory, or undefined if the platform does not tell. */
  freeMemory?(): number | undefined
  /** Opens a temporary file for examples. */
  readonly openExampleFile?: () => ExampleFile & { close(): unknown }
  /** Opens a module of rewards, or a JSON file of graders. */
  readonly loadRewards: (file: string) => Promise<readonly (Reward | Grader)[]>
  /** Returns the memory that this process uses, or undefined if the system does not tell. */
  readonly memoryUse?: () => MemoryUse | undefined
  nodeRuntime(specifier: string | undefined): RuntimeHost
}

const browser: Platform = {
  open: async (text, where, options) =>
    (await import('../../files/io/web/open-source.js')).openTextInBrowser(text, where, options),
  openData: async (text, where) => {
    throw noPaths(text, where)
  },
  target(text, where) {
    throw noPaths(text, where)
  },
  async hubAccess() {
    const { endpoint = 'https://huggingface.co', token } = hubOptions()
    return { endpoint, token }
  },
  loadRewards: async (file) => {
    throw noPaths(file, 'rewards', 'a list of functions')
  },
  decodeImage: async (file) => (await import('../../model/images/decode-in-browser.js')).decodeInBrowser(file),
  defaultRuntime() {
    throw new ConfigError({
      where: 'runtime',
      what: 'missing: a page says where onnxruntime-web lies',
      expected: 'webRuntime(url), or { module } with the imported onnxruntime-web',
    })
  },
  nodeRuntime() {
    throw new ConfigError({
      where: 'nodeRuntime',
      what: 'runs in Node, Bun and Deno only',
      hint: 'Call webRuntime(url)',
    })
  },
}

const PICKED = 'picked files or a Directory, such as FilesDirectory or HandleDirectory'

function noPaths(text: string, where: string, expected = PICKED): ConfigError {
  return new ConfigError({ where, what: 'a path, and browsers cannot open paths', expected, got: JSON.stringify(text) })
}

let current = browser

export function platform(): Platform {
  return current
}

export function usePlatform(used: Platform): void {
  current = used
}

/**
 * Makes a host whose sessions run in Node's worker threads, so that a run leaves this thread free. It is the default in
 * Node.
 *
 * @param specifier Module specifier or URL of ONNX Runtime. Default: the onnxruntime-node that is installed next to
 *   your program, else next to lowrank.
 * @throws RuntimeError when it is not installed, ConfigError in a browser
 *
 * @example
 * const model = await loadModel('models/union-3m', { runtime: nodeRuntime() })
 * await model.close()
 */
export function nodeRuntime(specifier?: string): RuntimeHost {
  if (specifier !== undefined) checkArgument(specifier, NAME, 'specifier')
  return platform().nodeRuntime(specifier)
}
