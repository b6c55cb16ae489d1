// Uploads adapters with the Hub's client. It skips files that the Hub has, so a push that broke off continues there.

import type { Source } from '../../core/base/bytes.js'
import { closing, readAll, withSource } from '../../core/base/bytes.js'
import { ConfigError, FileError, MismatchError, messageOf, UnsupportedError } from '../../core/base/errors.js'
import { checkArgument, checkOptions, kind } from '../../core/base/options.js'
import { CARD_FILE, MARKER_FILE, TEMPLATE_FILE } from '../../lora/peft/file-names.js'
import { type OpenAdapter, openAdapter } from '../../lora/peft/open.js'
import { otherWeights } from '../../model/base-record.js'
import { RECORD_FILE } from '../../train/saved/run-folder.js'
import { PUSH_OPTIONS } from '../gen/options.js'
import { loadModel } from '../model.js'
import { platform } from '../platform/platform.js'
import { openFolder } from '../sources.js'

/** Options of `push`. */
export interface PushOptions {
  /** Makes a new repository public. Default: only you, or your organization, can see it. */
  readonly public?: boolean | undefined
  /**
   * The branch.
   * @default main
   */
  readonly branch?: string | undefined
  /** The first line of the commit. Default: Upload an adapter. */
  readonly message?: string | undefined
  /**
   * The model that the adapter is meant for. If the folder records the digest of another model, nothing is sent.
   * @flag DIR|ID
   */
  readonly base?: Source | undefined
}

/** Result of `push`. */
export interface PushReport {
  /** The address of the repository. */
  url: string
  /** The commit. */
  commit: string
  /** Files that the repository has now. */
  files: string[]
}

/** The only files that are sent: a folder may also hold checkpoints, data and private notes. */
const OWN_FILES = [
  'adapter_config.json',
  'adapter_model.safetensors',
  TEMPLATE_FILE,
  CARD_FILE,
  RECORD_FILE,
  MARKER_FILE,
]

const REPOSITORY = kind('owner/name', (value) => /^[\w.-]+\/[\w.-]+$/.test(String(value)))

/**
 * Sends an adapter to the Hub: its config, weights, chat template, model card and the records of its training, and no
 * other files of the folder. If the repository does not exist, it is made, and only you can see it. Large files that
 * the Hub has are not sent again. The token comes from `configureHub`, HF_TOKEN or `hf auth login`. Needs the package
 * @huggingface/hub.
 *
 * @param repository `owner/name`
 * @throws ConfigError without a token; FileError when the folder holds no adapter, and when the Hub refuses it;
 *   MismatchError when the folder records another base than `base`; UnsupportedError without @huggingface/hub
 *
 * @example
 * const { url, files } = await push('out/scripture', 'me/scripture')
 */
export async function push(adapter: Source, repository: string, options: PushOptions = {}): Promise<PushReport> {
  checkArgument(repository, REPOSITORY, 'repository')
  checkOptions(options, 'push', PUSH_OPTIONS)
  const { branch = 'main', message = 'Upload an adapter', base } = options
  const directory = await openFolder(adapter, 'adapter')
  // A damaged adapter is found here, before anything is sent.
  const opened = await openAdapter(directory, {})
  await opened.close()
  if (base !== undefined) await requireBase(opened, base)
  const { endpoint, token, isOffline } = await platform().hubAccess()
  if (isOffline) throw new ConfigError({ where: 'HF_HUB_OFFLINE', what: 'it is set, so that nothing is sent' })
  if (!token?.startsWith('hf_')) {
    const what = token === undefined ? 'there is none for the Hub' : 'not one of the Hub, which begin with hf_'
    const hint = 'Set HF_TOKEN, or run hf auth login: the token needs the right to write'
    throw new ConfigError({ where: 'token', what, hint })
  }
  const { createRepo, uploadFiles } = await client()
  const hub = { repo: { type: 'model', name: repository }, accessToken: token, hubUrl: endpoint } as const
  const names = (await directory.list()).filter((name) => OWN_FILES.includes(name))
  try {
    await createRepo({ ...hub, visibility: options.public ? 'public' : 'private' }).catch((error: unknown) => {
      // 409: the repository exists already.
      if (statusOf(error) !== 409) throw error
    })
    const files = []
    for (const path of names) {
      const bytes = await withSource(directory, path, readAll)
      files.push({ path, content: new Blob([Uint8Array.from(bytes)]) })
    }
    const sent = await uploadFiles({ ...hub, files, branch, commitTitle: message })
    return { url: `${endpoint}/${repository}`, commit: sent!.commit.oid, files: names }
  } catch (cause) {
    throw refused(cause, repository)
  }
}

async function requireBase({ name, trainedOn }: OpenAdapter, base: Source): Promise<void> {
  return closing(await loadModel(base), async (model) => {
    const what = await otherWeights(trainedOn, model)
    if (what === undefined) return
    const hint = 'Use the base of the training: adapter_config.json and README.md name it'
    throw new MismatchError({ where: name, what, hint })
  })
}

/** Imports the Hub's client. Inside `try`, bundlers treat the package as optional, and build without it. */
async function client(): Promise<typeof import('@huggingface/hub')> {
  try {
    return await import('@huggingface/hub')
  } catch (cause) {
    const what = 'the package @huggingface/hub is not installed'
    throw new UnsupportedError({ where: 'push', what, hint: 'Run npm install @huggingface/hub', cause })
  }
}

function statusOf(error: unknown): number | undefined {
  return (error as { statusCode?: number } | null)?.statusCode
}

function refused(cause: unknown, where: string): FileError {
  const status = statusOf(cause)
  const isAccess = status === 401 || status === 403
  const hint = isAccess
    ? 'The token needs the right to write there: see https://huggingface.co/settings/tokens'
    : 'Run the same command again: large files that arrived are not sent twice'
  return new FileError({ where, what: `the Hub did not take it (${messageOf(cause)})`, hint, cause })
}
