// Makes a report: a single HTML file without further files. Its script and style are built from web/report
// (scripts/build-pages.mjs). A content security policy allows only these two, so texts from files can never run.

import { template } from './gen/template.js'
import { generatorOf } from './generator.js'

export type Cell = string | number | null

export interface Series {
  readonly name: string
  readonly x: readonly number[]
  /** A null leaves a gap in the line. */
  readonly y: readonly (number | null)[]
  /** The index of the line's color, the same in all charts. */
  readonly color?: number
}

export type Section =
  | { readonly kind: 'facts'; readonly title?: string; readonly facts: readonly (readonly [string, string])[] }
  | {
      readonly kind: 'curves'
      readonly title: string
      readonly x: string
      readonly series: readonly Series[]
      readonly isLogarithmic?: boolean
    }
  | {
      readonly kind: 'table'
      readonly title: string
      readonly columns: readonly string[]
      readonly rows: readonly (readonly Cell[])[]
    }
  | { readonly kind: 'samples'; readonly title: string; readonly samples: readonly Sample[] }

export interface Sample {
  readonly prompt: string
  readonly answers: readonly { readonly label: string; readonly text: string }[]
}

export interface Report {
  readonly title: string
  readonly command: string
  readonly sections: readonly Section[]
}

export function reportPage({ title, command, sections }: Report): string {
  const report = { title, command, sections }
  const parts = {
    title: `${title} · lowrank ${command}`.replace(/[&<>"']/g, (char) => `&#${char.charCodeAt(0)};`),
    generator: generatorOf(command),
    data: escapeJson(JSON.stringify(report, (_, value) => (typeof value === 'number' ? drawn(value) : value))),
  }
  return template.replace(/@@(title|generator|data)@@/g, (_, name: keyof typeof parts) => parts[name])
}

/** Rounds a number for drawing: a few digits are enough. */
function drawn(value: number): number {
  return Number.isInteger(value) ? value : Number(value.toPrecision(6))
}

/** Escapes whatever could end the script element or begin a comment. */
function escapeJson(json: string): string {
  return json.replace(/[<>&]/g, (char) => `\\u${char.charCodeAt(0).toString(16).padStart(4, '0')}`)
}
