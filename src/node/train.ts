// Training by path: opens what the paths name, trains, and closes it again.

import type { Model } from '../graph/model-folder.js'
import { openFile } from '../io/node/files.js'
import { DEFAULT, defaultTargetModules } from '../peft/default-targets.js'
import type { TextRecord } from '../text/records.js'
import type { TrainerOptions, TrainResult } from '../train/options.js'
import { Trainer } from '../train/trainer.js'
import { asDirectory, loadModel } from './model.js'

/** What {@link train} is told: the {@link Trainer}'s options, with paths. */
export interface TrainOptions extends Omit<TrainerOptions, 'model' | 'data' | 'evalData' | 'out'> {
  /** Path of a model folder or its .onnx file, or a model that is open: it stays open then. */
  readonly model: string | Model
  /** Path of a JSONL file, or records. */
  readonly data: string | readonly TextRecord[]
  /** As `data`, for the loss before and after. */
  readonly evalData?: string | readonly TextRecord[] | undefined
  /** Path of the folder for adapter, metrics and state. Without it nothing is written. */
  readonly out?: string | undefined
}

/**
 * Trains an adapter. The config's targetModules may be `default`: what PEFT adapts in a model of that type.
 *
 * @throws as {@link Trainer} does, and FileError when a path leads nowhere; ConfigError when PEFT has no defaults for the model
 */
export async function train(options: TrainOptions): Promise<TrainResult> {
  const closers: (() => Promise<void>)[] = []
  const open = async (data: string | readonly TextRecord[]) => {
    if (typeof data !== 'string') return data
    const source = await openFile(data)
    closers.push(() => source.close())
    return source
  }
  try {
    let { model } = options
    if (typeof model === 'string') {
      const opened = await loadModel(model)
      closers.push(() => opened.close())
      model = opened
    }
    const { config } = options
    const isDefault = config?.targetModules === DEFAULT
    const trainer = new Trainer({
      ...options,
      ...(isDefault && { config: { ...config, targetModules: defaultTargetModules(String(model.config.model_type)) } }),
      model,
      data: await open(options.data),
      evalData: options.evalData === undefined ? undefined : await open(options.evalData),
      out: options.out === undefined ? undefined : asDirectory(options.out),
    })
    return await trainer.train()
  } finally {
    await Promise.all(closers.map((close) => close()))
  }
}
