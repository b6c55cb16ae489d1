// The learning rate over a run: linear warm-up, then cosine (Loshchilov and Hutter 2017, arXiv 1608.03983), linear or
// none.

/** Ways in which the learning rate falls after the warm-up. */
export const SCHEDULES = ['cosine', 'linear', 'constant'] as const

/** One of {@link SCHEDULES}. */
export type Schedule = (typeof SCHEDULES)[number]

/** The peak is at the last warm-up step. The rate would be 0 at the step after the last. */
export function learningRates(schedule: Schedule, peak: number, warmupRatio: number, totalSteps: number) {
  // 10 / 150 · 150 is 10, but other ratios end a rounding error above the whole number they mean.
  const warmupSteps = Math.ceil(warmupRatio * totalSteps - 1e-9)
  return (step: number): number => {
    if (step < warmupSteps) return (peak * (step + 1)) / warmupSteps
    const progress = (step - warmupSteps) / Math.max(1, totalSteps - warmupSteps)
    if (schedule === 'cosine') return peak * 0.5 * (1 + Math.cos(Math.PI * progress))
    return schedule === 'linear' ? peak * (1 - progress) : peak
  }
}
