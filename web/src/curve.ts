// Draws the curve of the loss: each step, and the running mean, which is easier to follow.

import { byId } from './dom.js'

const WIDTH = 560
const HEIGHT = 260
const MARGIN = { left: 60, right: 14, top: 16, bottom: 30 }
/** The share of the newest step in the running mean. */
const NEWEST = 0.3

/** Returns the running mean at the last step. */
export function drawCurve(losses: readonly number[], totalSteps: number, caption: string): number | undefined {
  byId('curve-caption').textContent = caption
  const svg = byId('curve')
  if (losses.length === 0) {
    svg.replaceChildren()
    svg.setAttribute('aria-label', 'The loss has no values yet.')
    return undefined
  }
  const [low, high] = [Math.min(...losses), Math.max(...losses)]
  const pad = Math.max((high - low) * 0.08, 0.02)
  const [bottom, top] = [low - pad, high + pad]
  const x = (step: number) =>
    MARGIN.left + ((step - 1) / Math.max(totalSteps - 1, 1)) * (WIDTH - MARGIN.left - MARGIN.right)
  const y = (loss: number) => MARGIN.top + ((top - loss) / (top - bottom)) * (HEIGHT - MARGIN.top - MARGIN.bottom)
  const path = (values: readonly number[]) =>
    values.map((value, i) => `${i === 0 ? 'M' : 'L'}${x(i + 1).toFixed(1)} ${y(value).toFixed(1)}`).join('')
  let mean = losses[0]
  const means = losses.map((loss) => (mean += (loss - mean) * NEWEST))
  const floor = HEIGHT - MARGIN.bottom
  const ticks = [high, (low + high) / 2, low]
  const last = means.length
  svg.innerHTML = [
    ...ticks.map(
      (tick) =>
        `<line class="grid" x1="${MARGIN.left}" x2="${WIDTH - MARGIN.right}" y1="${y(tick)}" y2="${y(tick)}"/>` +
        `<text x="${MARGIN.left - 6}" y="${y(tick) + 4}" text-anchor="end">${tick.toFixed(2)}</text>`,
    ),
    `<text x="${MARGIN.left}" y="${HEIGHT - 8}">step 1</text>`,
    `<text x="${WIDTH - MARGIN.right}" y="${HEIGHT - 8}" text-anchor="end">${totalSteps}</text>`,
    `<path class="area" d="${path(means)}L${x(last).toFixed(1)} ${floor}L${x(1)} ${floor}Z"/>`,
    `<path class="steps" d="${path(losses)}"/>`,
    `<path class="mean" d="${path(means)}"/>`,
    `<circle cx="${x(last).toFixed(1)}" cy="${y(means[last - 1]).toFixed(1)}" r="5"/>`,
  ].join('')
  svg.setAttribute(
    'aria-label',
    `The loss fell from ${losses[0].toFixed(2)} at step 1 to about ${means[last - 1].toFixed(2)} at step ${last} of ${totalSteps}.`,
  )
  return means[last - 1]
}
