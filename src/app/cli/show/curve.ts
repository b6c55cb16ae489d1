// The losses of a run as one line of bars.

import { colors, say } from './terminal.js'

/** On a terminal alone. */
export function showCurve(losses: readonly number[]): void {
  if (!process.stderr.isTTY || losses.length < 2) return
  const width = Math.min(60, losses.length)
  const means = Array.from({ length: width }, (_, i) => {
    const share = losses.slice(Math.floor((i * losses.length) / width), Math.floor(((i + 1) * losses.length) / width))
    return share.reduce((sum, loss) => sum + loss, 0) / share.length
  })
  const [least, most] = [Math.min(...means), Math.max(...means)]
  const bars = means.map((mean) => '▁▂▃▄▅▆▇█'[Math.round((7 * (mean - least)) / (most - least || 1))])
  say(`Loss ${means[0].toFixed(3)} ${colors.cyan(bars.join(''))} ${means[width - 1].toFixed(3)}`)
}
