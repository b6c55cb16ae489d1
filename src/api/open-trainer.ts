// Opens trainers for loops of your own. What trains loads with the first call.

import { closingOnError, type Source } from '../core/base/bytes.js'
import { checkOptions } from '../core/base/options.js'
import { LORA_CONFIG } from '../lora/gen/options.js'
import type { Model } from '../model/model-folder.js'
import { MODEL } from '../model/source-values.js'
import { TRAINER_OPTIONS } from '../train/loop/gen/options.js'
import type { Trainer } from '../train/loop/trainer.js'
import type { TrainerOptions } from '../train/loop/trainer-options.js'
import { openAdapter } from './adapters.js'
import { loadModel } from './model.js'
import { withDefaultTargets } from './open-run.js'
import { memoryLimits } from './platform/memory.js'
import { openFolder, openTarget } from './sources.js'

export async function openTrainer(model: Model | Source, options: TrainerOptions = {}): Promise<Trainer> {
  checkOptions(options, 'openTrainer', TRAINER_OPTIONS, { nested: { config: Object.keys(LORA_CONFIG) } })
  const [{ Trainer }, { startRun }, { scoredTokens }] = await Promise.all([
    import('../train/loop/trainer.js'),
    import('../train/start-run.js'),
    import('../train/loop/token-scores.js'),
  ])
  const { dtype, entropy = false, ...rest } = options
  const adapter = options.adapter === undefined ? undefined : await openAdapter(options.adapter, 'adapter')
  const resume = options.resume === undefined ? undefined : await openFolder(options.resume, 'resume')
  const open = async (opened: Model, closesModel: boolean) => {
    const config = withDefaultTargets(options, opened)
    const given = { ...rest, model: opened, data: [], config, adapter, resume: undefined }
    const run = await startRun(given, { limits: memoryLimits(opened), task: scoredTokens(entropy) })
    return Trainer.open(run, { resume, closesModel, openTarget })
  }
  if (MODEL.accepts(model)) return open(model as Model, false)
  return closingOnError(await loadModel(model as Source, { dtype }), (opened) => open(opened, true))
}
