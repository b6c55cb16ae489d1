// The script of an inspection's page: its state, and the calls of its parts. Like them it is embedded as its own source text, so that it
// can use nothing from outside of itself, and it puts names from files into the page as text only.

import type { curvePlot } from './curves.js'
import type { PageData } from './data.js'
import type { drawSvg, figure, makeElement } from './elements.js'
import type { drawHead } from './head.js'
import type { drawMaps } from './maps.js'
import type { drawPlot } from './plot.js'
import type { drawTable } from './table.js'
import type { Measure, View } from './view.js'

/** The functions whose source goes into the page beside this one's. */
export interface Parts {
  makeElement: typeof makeElement
  drawSvg: typeof drawSvg
  figure: typeof figure
  drawHead: typeof drawHead
  drawMaps: typeof drawMaps
  drawPlot: typeof drawPlot
  curvePlot: typeof curvePlot
  drawTable: typeof drawTable
}

export function client(parts: Parts): void {
  const COLORS = 8
  const data = JSON.parse(byId('data').textContent ?? '') as PageData
  const { layers } = data
  const tip = byId('tip')
  const chosen = new Map<number, number>()
  const redraws: (() => void)[] = []

  function byId(id: string): HTMLElement {
    const element = document.getElementById(id)
    if (element === null) throw new Error(`the page has no element ${id}`)
    return element
  }

  /** The measures that a layer has; all where no layer has any, because its values are not finite. */
  function measuresOfLayers(): Measure[] {
    const all = data.measures.map(([key, label]): Measure => ({ label, of: (layer) => layer[key] as number | null }))
    const known = all.filter(({ of }) => layers.some((layer) => of(layer) !== null))
    return known.length === 0 ? all : known
  }

  function redraw(): void {
    view.largest = layers.reduce((result, layer) => Math.max(result, view.measure.of(layer) ?? 0), 0)
    for (const draw of redraws) draw()
  }

  /** Gives a layer a color that none has; with all in use, the longest chosen one's. */
  function toggle(layer: number): void {
    if (!chosen.delete(layer)) {
      const used = new Set(chosen.values())
      let color = 0
      while (used.has(color)) color++
      if (color === COLORS) {
        const [[oldest, itsColor]] = chosen
        color = itsColor
        chosen.delete(oldest)
      }
      chosen.set(layer, color)
    }
    redraw()
  }

  function showTip(event: PointerEvent, text: string): void {
    tip.textContent = text
    tip.hidden = false
    const { width, height } = tip.getBoundingClientRect()
    tip.style.left = `${Math.max(4, Math.min(event.clientX + 14, innerWidth - width - 4))}px`
    tip.style.top = `${event.clientY + 18 + height > innerHeight ? event.clientY - height - 10 : event.clientY + 18}px`
  }

  function hideTip(): void {
    tip.hidden = true
  }

  function choices(labels: string[], current: () => number, choose: (index: number) => void): HTMLElement {
    const group = parts.makeElement('span', 'choices')
    const buttons = labels.map((label, i) => {
      const button = parts.makeElement('button', '', label)
      button.type = 'button'
      button.addEventListener('click', () => {
        choose(i)
        redraw()
      })
      group.append(button)
      return button
    })
    redraws.push(() => {
      buttons.forEach((button, i) => {
        button.setAttribute('aria-pressed', String(i === current()))
      })
    })
    return group
  }

  /** The layers that change most, in the middle and least: three curves to begin with. */
  function chooseThree(): void {
    const byNorm = layers
      .map((layer, index) => ({ index, value: measures[0].of(layer) }))
      .filter(({ value }) => value !== null)
      .sort((a, b) => (b.value as number) - (a.value as number))
    for (const place of [0, byNorm.length >> 1, byNorm.length - 1]) {
      const index = byNorm[place]?.index
      if (index !== undefined && !chosen.has(index)) chosen.set(index, chosen.size)
    }
  }

  const measures = measuresOfLayers()
  const view: View = {
    data,
    main: byId('main'),
    measures,
    measure: measures[0],
    largest: 0,
    isRelative: false,
    chosen,
    toggle,
    onRedraw: (draw) => void redraws.push(draw),
    showTip,
    hideTip,
    choices,
    make: parts.makeElement,
    draw: parts.drawSvg,
    figure: parts.figure,
  }
  parts.drawHead(view, byId('head'))
  if (layers.length === 0) return
  parts.drawMaps(view)
  if (layers.some(({ singularValues }) => singularValues.length > 0)) parts.drawPlot(view, parts.curvePlot)
  parts.drawTable(view)
  chooseThree()
  redraw()
}
