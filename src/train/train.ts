// Training: model + records → adapter. `train` starts a run, takes its steps, and reports.

// The files of src/train/, in reading order:
//   options.ts, settings.ts  what a run can be asked for
//   start-run.ts             what it comes to: run.ts
//   training-loop.ts         its steps
//   tasks/                   what a model learns, a file for each task; task.ts first
//   rows/                    batches from rows of data
//   graph/                   the training graph; passes.ts has the order
//   engine/                  the steps, and AdamW, in a worker
//   saved/                   folders of runs, and how a stopped run goes on
//   evaluate/                metrics of finished adapters
//   search/                  questions to a corpus
//   calls/                   requests for calls of functions, and which answers are right
//   loop/                    loops of the caller, and runs in which the model writes the texts
//   handoff/                 a run that goes on in TRL

import { Learner } from './learner.js'
import type { TrainInput, TrainResult } from './options.js'
import { recordLessons } from './record-lessons.js'
import { withPictures } from './rows/examples.js'
import type { RunContext, TeachingTask } from './run.js'
import { withRunPlace } from './saved/run-place.js'
import { startRun } from './start-run.js'
import { runLessons } from './training-loop.js'

/** Nothing is written before the model, the data and the folder have been found usable. */
export async function train(given: TrainInput, around: RunContext = {}): Promise<TrainResult> {
  return withPictures(given, async (pictures) => {
    const startedAt = performance.now()
    const run = await startRun(given, { ...around, pictures })
    const { task, open, records } = run
    const result = await withRunPlace(run.place, async (place) => {
      const learner = await Learner.open(run)
      try {
        const lessons =
          'lessons' in task ? await (task as TeachingTask).lessons(run, learner) : recordLessons(run, learner)
        return await runLessons(learner, lessons, run, place).finally(() => lessons.close?.())
      } finally {
        await learner.close()
      }
    })
    const { adapter } = run
    const { truncatedRecords, skippedRecords } = records.kept
    const report = {
      ...result,
      ...{ task: task.name, truncatedRecords, skippedRecords },
      trainableParams: adapter.totalTrainableParams(),
      totalParams: adapter.totalParams(),
      labels: open.labels === undefined ? null : [...open.labels],
      newHead: open.head !== undefined && given.adapter === undefined ? open.head.isNew : null,
      seconds: (performance.now() - startedAt) / 1000,
    }
    return { adapter, report }
  })
}
