// The return value of train: a promise of the result that is also an async iterable of events, and that can be paused.

import { isObject } from '../core/base/options.js'
import type { TrainResult } from '../train/options.js'
import type { EvaluationEvent, ProgressEvent, StepEvent, TrainEvents, TrainStage } from '../train/report.js'
import { platform } from './platform/platform.js'

/** Something that happened in a run: an event of {@link TrainEvents}, with its name as `type`. */
export type TrainEvent =
  | ({ type: 'step' } & StepEvent)
  | ({ type: 'evaluation' } & EvaluationEvent)
  | ({ type: 'progress' } & ProgressEvent)
  | { type: 'stage'; stage: TrainStage }
  | { type: 'note' | 'warning'; message: string }

/** A run of `train`: a promise of its result. `for await` over it gives its events. */
export interface TrainRun extends Promise<TrainResult>, AsyncIterable<TrainEvent> {
  /**
   * Waits after the current step until `resume` is called, or the signal ends the run. Model and optimizer stay in
   * memory.
   */
  pause(): void
  /** Continues after `pause`. If the run is not paused, nothing happens. */
  resume(): void
}

export function followRun(
  on: unknown,
  start: (hooks: { on: unknown; wait(): Promise<void> | undefined }) => Promise<TrainResult>,
): TrainRun {
  const listeners = new Set<(event: TrainEvent) => void>()
  let paused: { promise: Promise<void>; end: () => void } | undefined
  const tell = (event: TrainEvent) => {
    for (const hear of listeners) hear(event)
  }
  const result = start({ on: heard(on, tell, () => listeners.size > 0), wait: () => paused?.promise })
  return Object.assign(result, {
    pause() {
      if (paused !== undefined) return
      let end = () => {}
      const promise = new Promise<void>((resolve) => {
        end = resolve
      })
      paused = { promise, end }
    },
    resume() {
      paused?.end()
      paused = undefined
    },
    [Symbol.asyncIterator]: () => eventsOf(result, listeners),
  })
}

/**
 * Returns the caller's functions, each followed by a call of `tell`. Values that are not functions stay as they are:
 * `train` refuses them. Without functions, progress goes to the terminal, unless the program follows the events.
 */
function heard(on: unknown, tell: (event: TrainEvent) => void, isFollowed: () => boolean): unknown {
  if (on !== undefined && !isObject(on)) return on
  const listeners = (on ?? platform().watch?.() ?? {}) as TrainEvents
  const then = <A>(listener: unknown, event: (value: A) => TrainEvent) => {
    if (listener !== undefined && typeof listener !== 'function') return listener
    return (value: A) => {
      if (on !== undefined || !isFollowed()) listener?.call(listeners, value)
      tell(event(value))
    }
  }
  const warning = then(listeners.warning, (message: string) => ({ type: 'warning', message }))
  return {
    ...listeners,
    step: then(listeners.step, (event: StepEvent) => ({ type: 'step', ...event })),
    evaluation: then(listeners.evaluation, (event: EvaluationEvent) => ({ type: 'evaluation', ...event })),
    progress: then(listeners.progress, (event: ProgressEvent) => ({ type: 'progress', ...event })),
    stage: then(listeners.stage, (stage: TrainStage) => ({ type: 'stage', stage })),
    note: then(listeners.note, (message: string) => ({ type: 'note', message })),
    // If nobody listens to warnings, this must be undefined: then important warnings go to the console.
    get warning() {
      return listeners.warning === undefined && !isFollowed() ? undefined : warning
    },
  }
}

/** Yields the events from now on until the run ends. If the run fails, it throws the same error. */
async function* eventsOf(result: Promise<unknown>, listeners: Set<(event: TrainEvent) => void>) {
  const events: TrainEvent[] = []
  let isOver = false
  let wake = () => {}
  const hear = (event: TrainEvent) => {
    events.push(event)
    wake()
  }
  const end = () => {
    isOver = true
    wake()
  }
  listeners.add(hear)
  result.then(end, end)
  try {
    for (;;) {
      for (let event = events.shift(); event !== undefined; event = events.shift()) yield event
      if (isOver) return void (await result)
      await new Promise<void>((resolve) => {
        wake = resolve
      })
    }
  } finally {
    listeners.delete(hear)
  }
}
