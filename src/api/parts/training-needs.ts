// Starts a run and ends it before its first step, to tell what it needs: memory, records, learning rate.

import type { DataError } from '../../core/base/errors.js'
import { trainingMemory } from '../../model/memory.js'
import type { TrainOptions } from '../../train/options.js'

/** What {@link trainingNeeds} tells of a run. */
export interface TrainingNeeds {
  memory: {
    /** The path of the model's graph. */
    graph: string
    /** Bytes of the weights. */
    weights: number
    /** Bytes of weights that are copied for faster products. */
    copies: number
    /** Bytes for each record of a batch. */
    perRecord: number
  }
  /** Bytes of the adapter's factors in float32. */
  adapterBytes: number
  /** The records that the run learns from. */
  records: number
  learningRate: number
}

/**
 * Checks options and data as `train` does, but trains nothing. `onInvalid` gets each record that cannot be used; the
 * check goes on until it throws.
 * @throws what `train` throws before its first step
 */
export async function trainingNeeds(
  options: TrainOptions,
  onInvalid?: (error: DataError) => void,
): Promise<TrainingNeeds> {
  const [{ withTraining }, { startRun }] = await Promise.all([
    import('../open-run.js'),
    import('../../train/start-run.js'),
  ])
  return withTraining(options, async (opened, around) => {
    const run = await startRun(opened, { ...around, onInvalid })
    const { model, open, longest: sequence, copiedBytes, adapter, records, settings } = run
    const [{ weights, total }, one] = [0, open.rowsOfExample ?? 1].map((batch) =>
      trainingMemory(model, { batch, sequence, lowMemory: false }),
    )
    return {
      memory: { graph: model.onnxPath, weights, copies: Math.min(weights, copiedBytes), perRecord: one.total - total },
      adapterBytes: 4 * adapter.totalTrainableParams(),
      records: records.kept.rows - records.kept.skippedRecords,
      learningRate: settings.learningRate,
    }
  })
}
