// The plot of singular values. Embedded as its own source text.

import type { View } from './view.js'

interface Curve {
  name: string
  /** Number of the color. */
  color: number
  /** Largest first. */
  values: number[]
}

/** The curves over a logarithmic scale; an empty element where no value is above zero. */
export function curvePlot({ draw, figure, showTip, hideTip }: View, curves: Curve[]): SVGElement {
  const [width, height, left, right, top, bottom] = [1140, 340, 70, 16, 12, 36]

  /** Powers of ten; where these are few, multiples of them in between. */
  function ticks(from: number, to: number): number[] {
    const [first, last] = [Math.floor(Math.log10(from)), Math.ceil(Math.log10(to))]
    const inRange = (values: number[]) => values.filter((value) => value >= from && value <= to)
    const powers = Array.from({ length: last - first + 1 }, (_, i) => first + i)
    if (to / from < 20)
      return inRange(powers.flatMap((power) => [1, 1.5, 2, 3, 5, 7].map((digit) => digit * 10 ** power)))
    if (to / from < 1000) return inRange(powers.flatMap((power) => [1, 2, 5].map((digit) => digit * 10 ** power)))
    return inRange(powers.map((power) => 10 ** power))
  }

  function tickLabel(value: number): string {
    return value >= 1e-3 && value < 1e5 ? String(Number(value.toPrecision(2))) : value.toExponential(0)
  }

  function drawGrid(): SVGElement[] {
    return ticks(10 ** bottomPower, 10 ** topPower).flatMap((value) => {
      const y = yOf(value)
      const place = { x: left - 8, y: y + 4, 'text-anchor': 'end', class: 'faint' }
      const line = draw('line', { x1: left, x2: width - right, y1: y, y2: y, class: 'grid' })
      return [line, draw('text', place, tickLabel(value))]
    })
  }

  function drawIndexes(): SVGElement[] {
    const every = [1, 2, 5, 10, 20, 50, 100].find((step) => count / step <= 16) ?? 200
    const shown = Array.from({ length: count }, (_, i) => i).filter((i) => i === 0 || (i + 1) % every === 0)
    const text = (x: number, y: number, label: string) =>
      draw('text', { x, y, 'text-anchor': 'middle', class: 'faint' }, label)
    return [
      ...shown.map((i) => text(xOf(i), height - 16, String(i + 1))),
      text((left + width - right) / 2, height - 1, 'index'),
    ]
  }

  function drawCurve({ name, color, values }: Curve): SVGElement[] {
    const points = values.map((value, i) => `${i === 0 ? 'M' : 'L'}${xOf(i).toFixed(1)} ${yOf(value).toFixed(1)}`)
    const path = draw('path', { d: points.join('') })
    path.style.stroke = `var(--c${color})`
    const dots = values.map((value, i) => {
      const dot = draw('circle', { cx: xOf(i), cy: yOf(value), r: values.length > 70 ? 2 : 3.5 })
      dot.style.fill = `var(--c${color})`
      dot.addEventListener('pointermove', (event) => showTip(event, `${name}\nσ${i + 1}  ${figure(value)}`))
      dot.addEventListener('pointerleave', hideTip)
      return dot
    })
    return [path, ...dots]
  }

  const all = curves.flatMap(({ values }) => values).filter((value) => value > 0)
  if (all.length === 0) return draw('svg', { width: 10, height: 0 })
  const max = Math.max(...all)
  // Below are values that are zero but for rounding.
  const min = Math.max(Math.min(...all), max * 1e-8)
  const margin = Math.max(0.05, (Math.log10(max) - Math.log10(min)) * 0.05)
  const [bottomPower, topPower] = [Math.log10(min) - margin, Math.log10(max) + margin]
  const count = Math.max(2, ...curves.map(({ values }) => values.length))
  const xOf = (i: number) => left + (i / (count - 1)) * (width - left - right)
  const yOf = (value: number) => {
    const share = (Math.log10(Math.max(value, min)) - bottomPower) / (topPower - bottomPower)
    return height - bottom - share * (height - top - bottom)
  }
  const svg = draw('svg', { viewBox: `0 0 ${width} ${height}`, width: '100%', role: 'img' })
  svg.setAttribute('aria-label', 'Singular values, largest first')
  svg.append(...drawGrid(), ...drawIndexes(), ...curves.flatMap(drawCurve))
  return svg
}
