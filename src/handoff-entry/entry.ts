// lowrank/handoff: a run goes on elsewhere.

import type { HandoffReport } from '../handoff/handoff.js'
import type { HandoffOptions } from '../index/away/handoff.js'
import type { AddLoraInputsOptions, LoraInputsReport } from '../index/away/lora-inputs.js'
import type { PushOptions, PushReport } from '../index/away/push.js'
import type { Source } from '../index/sources.js'
import type { TrainOptions } from '../index/train.js'

export type { HandoffReport } from '../handoff/handoff.js'
export type { HandoffOptions } from '../index/away/handoff.js'
export type { AddLoraInputsOptions, LoraInputsReport } from '../index/away/lora-inputs.js'
export type { PushOptions, PushReport } from '../index/away/push.js'

/**
 * Writes a folder with which another program goes on with a run, where GPUs are: settings, rows, chat template, the
 * adapter that training starts from, a script, and a README with the commands. The records, their order, the start
 * values, the optimizer and the learning rates are those of lowrank; what is not the same is in the report.
 *
 * @param run the folder of a run, or the options of `train`. An unfinished run goes on from the step it had reached
 * @throws UnsupportedError for a task or a setting that cannot be handed off; FileError for a folder that has no run,
 *   and when `out` is not empty; what `train` throws before its first step
 *
 * @example
 * const { steps, differences } = await handoff('out/run', { to: 'trl', out: 'out/for-gpus' })
 */
export async function handoff(run: Source | TrainOptions, options: HandoffOptions): Promise<HandoffReport> {
  return (await import('../index/away/handoff.js')).handoff(run, options)
}

/**
 * Writes a model whose graph takes adapters with each run, as ONNX Runtime's own LoRA feeds them: the inputs
 * NAME.lora_A.weight (k, r) and NAME.lora_B.weight (r, d) of each linear layer, with zeros as their default. The base's
 * weights stay bit for bit. `convertAdapter` with `to: 'onnx-adapter'` writes adapters for it.
 *
 * @throws MismatchError when `targetModules` match no layer; FileError when `out` is not empty; what `loadModel` throws
 *
 * @example
 * const { inputs } = await addLoraInputs('models/union-3m', { out: 'out/with-inputs', targetModules: ['q_proj'] })
 */
export async function addLoraInputs(model: Source, options: AddLoraInputsOptions): Promise<LoraInputsReport> {
  return (await import('../index/away/lora-inputs.js')).addLoraInputs(model, options)
}

/**
 * Sends an adapter to the Hub: its config, weights, chat template, model card and the records of its training, and no
 * other files of the folder. Makes the repository if there is none, for you alone. Large files that the Hub has are not
 * sent again. The token is that of `configureHub`, of HF_TOKEN or of `hf auth login`. Needs the package
 * @huggingface/hub.
 *
 * @param repository `owner/name`
 * @throws ConfigError without a token; FileError when the folder holds no adapter, and when the Hub refuses it;
 *   MismatchError when the folder records another base than `base`; UnsupportedError without @huggingface/hub
 *
 * @example
 * const { url, files } = await push('out/scripture', 'me/scripture')
 */
export async function push(adapter: Source, repository: string, options?: PushOptions): Promise<PushReport> {
  return (await import('../index/away/push.js')).push(adapter, repository, options)
}
