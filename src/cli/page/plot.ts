// The section of singular values: the curves of the chosen layers, and their legend. Embedded as its own source text.

import type { curvePlot } from './curves.js'
import type { PageLayer } from './data.js'
import type { View } from './view.js'

export function drawPlot(view: View, plot: typeof curvePlot): void {
  const { data, chosen, make } = view
  const { layers } = data

  function drawBar(): HTMLElement {
    const bar = make('div', 'bar')
    const choose = (i: number) => {
      view.isRelative = i === 1
    }
    bar.append(
      view.choices(['as they are', 'relative to the largest'], () => Number(view.isRelative), choose),
      make('span', 'hint', 'Largest first, on a logarithmic scale.'),
    )
    return bar
  }

  function curveOf({ singularValues }: PageLayer): number[] {
    const scale = view.isRelative ? singularValues[0] || 1 : 1
    return singularValues.map((value) => value / scale)
  }

  function legendEntry(layer: number, color: number): HTMLElement {
    const item = make('li')
    const button = make('button')
    const swatch = make('span', 'swatch')
    swatch.style.background = `var(--c${color})`
    button.append(swatch, layers[layer].name)
    button.title = 'Take it out'
    button.addEventListener('click', () => view.toggle(layer))
    item.append(button)
    return item
  }

  const section = make('section')
  const frame = make('div', 'plot')
  const legend = make('ul', 'legend')
  section.append(make('h2', '', `Singular values of ${data.curves}`), drawBar(), legend, frame)
  view.main.append(section)
  view.onRedraw(() => {
    const curves = [...chosen].map(([layer, color]) => {
      return { color, name: layers[layer].name, values: curveOf(layers[layer]) }
    })
    frame.replaceChildren(plot(view, curves))
    legend.replaceChildren(...[...chosen].map(([layer, color]) => legendEntry(layer, color)))
    if (curves.length === 0) legend.append(make('li', 'hint', 'Choose layers in the map or in the table.'))
  })
}
