// What the parts of an inspection's page share: its data, what is chosen, and what to draw with.

import type { PageData, PageLayer } from './data.js'
import type { drawSvg, figure, makeElement } from './elements.js'

/** A number of each layer that the maps can show. */
export interface Measure {
  readonly label: string
  readonly of: (layer: PageLayer) => number | null
}

export interface View {
  readonly data: PageData
  /** Where sections go. */
  readonly main: HTMLElement
  /** What can be shown of the layers; at least one. */
  readonly measures: readonly Measure[]
  /** The one that the maps show. */
  measure: Measure
  /** Its largest value. */
  largest: number
  /** Whether curves are shown relative to their largest value. */
  isRelative: boolean
  /** Place of a chosen layer → number of its color. */
  readonly chosen: ReadonlyMap<number, number>
  /** Chooses a layer, or takes it out. */
  readonly toggle: (layer: number) => void
  /** Registers what is drawn anew with each choice. */
  readonly onRedraw: (draw: () => void) => void
  readonly showTip: (event: PointerEvent, text: string) => void
  readonly hideTip: () => void
  /** Buttons of which one is pressed; `choose` hears of the next before all is drawn anew. */
  readonly choices: (labels: string[], current: () => number, choose: (index: number) => void) => HTMLElement
  readonly make: typeof makeElement
  readonly draw: typeof drawSvg
  readonly figure: typeof figure
}
