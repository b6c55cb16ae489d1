// Conversion to plain LoRA by path.

import { ConfigError, FileError, UnsupportedError } from '../base/errors.js'
import { locate, NodeDirectory } from '../io/node/files.js'
import type { Init } from '../lora/init/inits.js'
import { convertToPlain } from '../merge/convert.js'
import * as peft from '../peft/adapter-folder.js'

/** What is converted, and by which base. */
export interface ConvertByPathOptions {
  /** A PEFT adapter folder. */
  adapter: string
  /** The original base: a folder with a safetensors checkpoint, or its file. This or `initial`. */
  base?: string | undefined
  /** The folder of the adapter as it was before training, where that was kept. */
  initial?: string | undefined
  /** Folder of the result, which is empty or not there yet. */
  out: string
}

/** What `convert` wrote. */
export interface ConvertReport {
  /** The folder of the result. */
  out: string
  /** How the adapter started. */
  init: Init
  /** The layers and embeddings of the result, with the ranks that they have there. */
  layers: { name: string; rank: number }[]
  /** The start was found anew by random draws: pissa-niter-N without `initial`. */
  isApproximate: boolean
}

/**
 * Writes a plain adapter that changes the original base as `adapter` changes the one that its start left.
 *
 * @throws what loadAdapter, convertToPlain and saveAdapter throw; ConfigError unless there is either base or initial; FileError
 *   when `out` is not empty
 */
export async function convert({ adapter, base, initial, out }: ConvertByPathOptions): Promise<ConvertReport> {
  if ((base === undefined) === (initial === undefined)) {
    throw new ConfigError({
      where: base === undefined ? 'base' : 'initial',
      what: base === undefined ? 'missing, and initial too' : 'only without base',
      expected: 'the original base, or the adapter before training',
    })
  }
  const target = new NodeDirectory(out)
  const files = await target.list()
  if (files.length > 0) {
    throw new FileError({
      where: out,
      what: 'exists already and is not empty',
      got: files.slice(0, 5).join(', '),
      hint: 'Choose another place',
    })
  }
  const trained = await peft.loadAdapter(new NodeDirectory(adapter))
  const start = initial === undefined ? await checkpointOf(base!) : await peft.loadAdapter(new NodeDirectory(initial))
  const plain =
    'directory' in start
      ? await convertToPlain(trained, start.directory, { basePath: start.file })
      : await convertToPlain(trained, start)
  await peft.saveAdapter(plain, target)
  const { init } = trained.config
  return {
    out,
    init,
    layers: plain.parts('linear', 'embedding').map(({ name, rank }) => ({ name, rank })),
    isApproximate: init.startsWith('pissa-niter') && initial === undefined,
  }
}

async function checkpointOf(target: string) {
  const { directory, file } = await locate(target)
  if (file === undefined || /\.(safetensors|json)$/.test(file)) return { directory, file }
  throw new UnsupportedError({
    where: target,
    what: 'the start of an adapter is not found in such a file',
    expected: 'a .safetensors file, or a folder with a checkpoint',
  })
}
