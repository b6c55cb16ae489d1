// Charts of lines, drawn by uPlot in the page's own colors.

import uPlot from 'uplot'
import type { Series } from '../../src/api/report/page.js'
import { make } from '../src/elements.js'
import { figure } from './dom.js'

/** Steps of the axis x, which counts. */
const WHOLE_STEPS = [1, 2, 5]
  .flatMap((digit) => Array.from({ length: 8 }, (_, power) => digit * 10 ** power))
  .sort((a, b) => a - b)

const COLORS = 8

export interface ChartOptions {
  /** The unit of the x axis. */
  readonly x: string
  readonly isLogarithmic?: boolean | undefined
}

export function chart(series: readonly Series[], { x, isLogarithmic = false }: ChartOptions): HTMLElement {
  const frame = make('div', { class: 'chart' })
  const usable = (value: number | null) => value !== null && Number.isFinite(value) && (!isLogarithmic || value > 0)
  const known = series.map((line) => ({ ...line, y: line.y.map((value) => (usable(value) ? value : null)) }))
  if (!known.some(({ y }) => y.some((value) => value !== null))) return frame
  const color = (name: string) => getComputedStyle(document.documentElement).getPropertyValue(name)
  const axis = {
    stroke: () => color('--soft'),
    grid: { stroke: () => color('--line'), width: 1 },
    ticks: { show: false },
  }
  const numbers = (_: uPlot, values: (number | null)[]) => values.map((value) => (value === null ? '' : figure(value)))
  const options: uPlot.Options = {
    width: 640,
    height: 300,
    scales: { x: { time: false }, y: { distr: isLogarithmic ? 3 : 1 } },
    axes: [
      { ...axis, label: x, labelSize: 18, incrs: WHOLE_STEPS },
      { ...axis, size: 64, values: numbers },
    ],
    series: [
      { label: x },
      ...known.map(({ name, x: places, color: index }, i) => ({
        label: name,
        stroke: () => color(`--c${(index ?? i) % COLORS}`),
        width: 2,
        spanGaps: true,
        points: { show: places.length < 60, size: 6 },
        value: (_: uPlot, value: number | null) => figure(value),
      })),
    ],
  }
  const tables = known.map(({ x: places, y }) => [places, y] as unknown as uPlot.AlignedData)
  const plot = new uPlot(options, uPlot.join(tables), frame)
  const fit = () =>
    plot.setSize({ width: Math.max(280, frame.clientWidth), height: frame.clientWidth < 480 ? 220 : 300 })
  new ResizeObserver(fit).observe(frame)
  matchMedia('(prefers-color-scheme: dark)').addEventListener('change', () => plot.redraw(false, true))
  return frame
}
