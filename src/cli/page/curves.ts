// The plot of singular values. Like the script that calls it, it is embedded as its own source text, and uses nothing from outside.

export interface Curve {
  name: string
  /** Number of the colour. */
  color: number
  /** Largest first. */
  values: number[]
}

/**
 * @param figure a number as text
 * @param onPoint hears where the pointer is, with what to tell; undefined when it left
 */
export function curvePlot(
  curves: Curve[],
  figure: (value: number) => string,
  onPoint: (event: PointerEvent, text: string | undefined) => void,
): SVGElement {
  function draw<K extends keyof SVGElementTagNameMap>(
    tag: K,
    attributes: Record<string, string | number>,
    text = '',
  ): SVGElementTagNameMap[K] {
    const element = document.createElementNS('http://www.w3.org/2000/svg', tag)
    for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, String(value))
    if (text !== '') element.textContent = text
    return element
  }

  /** 1, 2, 5 of each power of ten where they are few; else powers of ten, or every second or third of them. */
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

  const [width, height, left, right, top, bottom] = [1140, 340, 70, 16, 12, 36]
  const svg = draw('svg', { viewBox: `0 0 ${width} ${height}`, width: '100%', role: 'img' })
  svg.setAttribute('aria-label', 'Singular values, largest first')
  const all = curves.flatMap(({ values }) => values).filter((value) => value > 0)
  if (all.length === 0) return draw('svg', { width: 10, height: 0 })
  const max = Math.max(...all)
  // Below are values that are zero but for rounding.
  const min = Math.max(Math.min(...all), max * 1e-8)
  let [bottomPower, topPower] = [Math.log10(min), Math.log10(max)]
  const margin = Math.max(0.05, (topPower - bottomPower) * 0.05)
  bottomPower -= margin
  topPower += margin
  const count = Math.max(2, ...curves.map(({ values }) => values.length))
  const xOf = (i: number) => left + (i / (count - 1)) * (width - left - right)
  const yOf = (value: number) => {
    const share = (Math.log10(Math.max(value, min)) - bottomPower) / (topPower - bottomPower)
    return height - bottom - share * (height - top - bottom)
  }
  for (const value of ticks(10 ** bottomPower, 10 ** topPower)) {
    const y = yOf(value)
    svg.append(draw('line', { x1: left, x2: width - right, y1: y, y2: y, class: 'grid' }))
    svg.append(draw('text', { x: left - 8, y: y + 4, 'text-anchor': 'end', class: 'faint' }, tickLabel(value)))
  }
  const every = [1, 2, 5, 10, 20, 50, 100].find((step) => count / step <= 16) ?? 200
  for (let i = 0; i < count; i++) {
    if (i !== 0 && (i + 1) % every !== 0) continue
    svg.append(draw('text', { x: xOf(i), y: height - 16, 'text-anchor': 'middle', class: 'faint' }, String(i + 1)))
  }
  svg.append(
    draw('text', { x: (left + width - right) / 2, y: height - 1, 'text-anchor': 'middle', class: 'faint' }, 'index'),
  )
  for (const { name, color, values } of curves) {
    const line = values
      .map((value, i) => `${i === 0 ? 'M' : 'L'}${xOf(i).toFixed(1)} ${yOf(value).toFixed(1)}`)
      .join('')
    const path = draw('path', { d: line })
    path.style.stroke = `var(--c${color})`
    svg.append(path)
    values.forEach((value, i) => {
      const dot = draw('circle', { cx: xOf(i), cy: yOf(value), r: values.length > 70 ? 2 : 3.5 })
      dot.style.fill = `var(--c${color})`
      dot.addEventListener('pointermove', (event) => {
        onPoint(event, `${name}\nσ${i + 1}  ${figure(value)}`)
      })
      dot.addEventListener('pointerleave', (event) => onPoint(event, undefined))
      svg.append(dot)
    })
  }
  return svg
}
