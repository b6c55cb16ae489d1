// Hands off a run: finds its options, opens the model and the data that they name, and writes the folder.

import type { Source, Target } from '../../core/base/bytes.js'
import { type Directory, readJson } from '../../core/base/bytes.js'
import { ConfigError, FileError } from '../../core/base/errors.js'
import { checkOptions, isObject } from '../../core/base/options.js'
import { isDirectory } from '../../files/data/row.js'
import type { HandoffReport } from '../../train/handoff/handoff.js'
import type { TrainOptions } from '../../train/options.js'
import { RECORD_FILE } from '../../train/saved/run-folder.js'
import { HANDOFF_OPTIONS } from '../gen/options.js'
import { withTraining } from '../open-run.js'
import { openFolder, openTarget } from '../sources.js'

/** Options of `handoff`. */
export interface HandoffOptions {
  /** The program that goes on. `trl`: Hugging Face TRL, with PEFT and accelerate. */
  readonly to: 'trl'
  /**
   * The new folder.
   * @flag DIR
   */
  readonly out: Target
  /**
   * The base as transformers opens it: an id on the Hub, or a folder. Default: the base that the run names. A
   * repository of ONNX files needs it: the original weights are elsewhere.
   * @flag DIR|ID
   */
  readonly base?: string | undefined
  /**
   * The rows of texts and chats. `tokens`: the tokens and labels that lowrank would train on. `records`: the records
   * themselves, which TRL turns into tokens, so that you can change the base or add data.
   * @default tokens
   */
  readonly rows?: 'tokens' | 'records' | undefined
}

/**
 * Writes a folder from which another program continues a run on a machine with GPUs: settings, rows, chat template, the
 * adapter that training starts from, and a README with the commands. The records, their order, the optimizer and the
 * learning rates are the same as in lowrank; the report lists what differs.
 *
 * @param run the folder of a run, or the options of `train`. The run starts again, from its start values
 * @throws UnsupportedError for a task or a setting that cannot be handed off; FileError for a folder that has no run,
 *   and when `out` is not empty; what `train` throws before its first step
 *
 * @example
 * const { steps, differences } = await handoff('out/run', { to: 'trl', out: 'out/for-gpus' })
 */
export async function handoff(run: Source | TrainOptions, options: HandoffOptions): Promise<HandoffReport> {
  checkOptions(options, 'handoff', HANDOFF_OPTIONS)
  const { handOff } = await import('../../train/handoff/handoff.js')
  const { out, base, rows = 'tokens' } = options
  const found = isOptions(run) ? run : await optionsOf(await openFolder(run, 'run'))
  return withTraining(found, (opened, context) => handOff(opened, context, { out: openTarget(out, 'out'), base, rows }))
}

function isOptions(run: Source | TrainOptions): run is TrainOptions {
  return isObject(run) && !isDirectory(run) && 'model' in run
}

async function optionsOf(directory: Directory): Promise<TrainOptions> {
  const where = directory.name
  if (!(await directory.has(RECORD_FILE))) {
    throw new FileError({
      where,
      what: `no ${RECORD_FILE}, which holds the options of a run`,
      hint: 'Name the folder of a run of lowrank, or give the options of `train`. A run of records in memory has no such file',
    })
  }
  const options = (await readJson(directory, RECORD_FILE)) as TrainOptions
  if (!isObject(options)) throw new ConfigError({ where: `${where}/${RECORD_FILE}`, what: 'not the options of a run' })
  return options
}
