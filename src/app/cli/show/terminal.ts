// Messages go to stderr, results to stdout. With --json, stdout has exactly one JSON document.

import { createColors } from 'picocolors'
import type { DownloadProgress } from '../../../api/index.js'
import { sumOfDownloads } from '../../../core/base/downloads.js'

/** C0, DEL and C1 controls, line separators, and marks that change the direction of writing. */
const CONTROLS = /[\p{Cc}\u2028\u2029\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069]/gu

/** Control characters that lowrank writes itself: line ends and colors. */
// biome-ignore lint/suspicious/noControlCharactersInRegex: the sequences that picocolors writes
const OURS = /\n|\x1b\[\d{1,2}m/g

/** Makes a line of printable text: characters that would control a terminal are written as '\x1b' or '\u202e'. */
export function printable(text: string): string {
  return text.replace(CONTROLS, escaped)
}

/** Does the same for a text that may have several lines and the colors that lowrank writes. */
export function printableLines(text: string): string {
  let result = ''
  let end = 0
  for (const { 0: ours, index } of text.matchAll(OURS)) {
    result += printable(text.slice(end, index)) + ours
    end = index + ours.length
  }
  return result + printable(text.slice(end))
}

/** Does the same for prose, whose line ends, tabs and direction marks stay. */
export function printableProse(text: string): string {
  return text.replace(/[^\P{Cc}\n\t]/gu, escaped)
}

/** Returns JSON with the same meaning, in which control characters that JSON allows are escaped. */
export function printableJson(json: string): string {
  return json.replace(CONTROLS, (control) => (control === '\n' ? control : `\\u${hex(control, 4)}`))
}

function escaped(control: string): string {
  if (control === '\n') return '\\n'
  if (control === '\t') return '\\t'
  if (control === '\r') return '\\r'
  return control.charCodeAt(0) < 0x100 ? `\\x${hex(control, 2)}` : `\\u${hex(control, 4)}`
}

function hex(character: string, digits: number): string {
  return character.charCodeAt(0).toString(16).padStart(digits, '0')
}

const PLAIN_INTERVAL_MS = 5000
/** The shortest time between two redraws of the progress bar: a terminal over a network draws slowly. */
const BAR_INTERVAL_MS = 80
const MAX_BAR = 30
/** A shorter bar would show too little, so a narrow terminal gets no bar. */
const MIN_BAR = 10

export const colors = createColors(usesColor(process.stderr))

/** True if colors are on: NO_COLOR and FORCE_COLOR decide, else the terminal. */
export function usesColor(stream: NodeJS.WriteStream): boolean {
  const { NO_COLOR, FORCE_COLOR, TERM } = process.env
  if (NO_COLOR !== undefined && NO_COLOR !== '') return false
  if (FORCE_COLOR !== undefined && FORCE_COLOR !== '0') return true
  return stream.isTTY === true && TERM !== 'dumb'
}

/** Prints a line for people on stderr. Pass texts from files through `printable` first. */
export function say(line = ''): void {
  process.stderr.write(`${printableLines(line)}\n`)
}

export function warn(line: string): void {
  say(`${colors.yellow('warning:')} ${printable(spelled(line))}`)
}

export function note(line: string): void {
  say(printable(spelled(line)))
}

let spelled = (message: string): string => message

/** Sets how option names in messages are rewritten for the command line. */
export function spellMessages(spell: (message: string) => string): void {
  spelled = spell
}

export function complain(label: 'error' | 'problem', message: string): void {
  say(`${colors.red(`${label}:`)} ${printable(spelled(message))}`)
}

export function print(lines: string): void {
  process.stdout.write(`${printableLines(lines)}\n`)
}

export function printDocument(document: Record<string, unknown>): void {
  process.stdout.write(`${printableJson(JSON.stringify({ version: 1, ...document }, null, 2))}\n`)
}

export class Progress {
  readonly #stream = process.stderr
  readonly #startedAt = performance.now()
  #first: { at: number; done: number } | undefined
  /** The time of the last line. On a terminal the first is drawn at once; elsewhere it waits as long as later lines. */
  #drawnAt = process.stderr.isTTY ? Number.NEGATIVE_INFINITY : performance.now()
  #isComplete = false
  #isOpen = false

  /** @param shown how a number is written */
  update(done: number, total: number, detail: string, shown: (value: number) => string = String): void {
    const now = performance.now()
    this.#first ??= { at: now, done }
    const interval = this.#stream.isTTY ? BAR_INTERVAL_MS : PLAIN_INTERVAL_MS
    const isNews = done === total ? !this.#isComplete : now - this.#drawnAt >= interval
    if (!isNews) return
    this.#drawnAt = now
    this.#isComplete = done === total
    const count = `${shown(done).padStart(shown(total).length)}/${shown(total)}`
    const rest = `${count}${detail}${this.#timeLeft(now, done, total)}`
    if (!this.#stream.isTTY) {
      say(rest)
      return
    }
    // If a line is too long, the terminal breaks it, and redrawing would repeat it.
    const columns = (this.#stream.columns || 80) - 1
    const width = Math.min(MAX_BAR, columns - rest.length - 2)
    const filled = total === 0 ? 0 : Math.round((width * Math.min(done, total)) / total)
    const bar = width < MIN_BAR ? '' : `${colors.cyan('━'.repeat(filled)) + colors.dim('━'.repeat(width - filled))}  `
    this.#stream.write(`\r\x1b[2K${bar}${rest.slice(0, columns)}`)
    this.#isOpen = true
  }

  /** Shows a count of bytes. Bytes that an earlier process downloaded (`kept`) do not count in the rate. */
  updateBytes(done: number, total: number, kept = 0): void {
    const digits = total < 10e6 ? 1 : 0
    const megabytes = (value: number) => (Math.min(value, total) / 1e6).toFixed(digits)
    const rate = ((done - kept) / Math.max(1, performance.now() - this.#startedAt)) * 1000
    this.update(done, total, ` MB  ${bytes(rate)}/s`, megabytes)
  }

  #timeLeft(now: number, done: number, total: number): string {
    const first = this.#first!
    if (done >= total || done === first.done) return ''
    return `  ${duration(((now - first.at) / (done - first.done)) * (total - done))} left`
  }

  /** Clears the line for a message. An unfinished bar is drawn again below it. */
  clear(): void {
    if (this.#isComplete) this.end()
    if (this.#isOpen) this.#stream.write('\r\x1b[2K')
    this.#isOpen = false
    if (this.#stream.isTTY) this.#drawnAt = Number.NEGATIVE_INFINITY
  }

  end(): void {
    if (this.#isOpen) this.#stream.write('\n')
    this.#isOpen = false
  }
}

/** Lists the first names, and how many there are in all. The JSON document has all names. */
export function firstOf(names: readonly string[], most = 5): string {
  return names.slice(0, most).join(', ') + (names.length > most ? `, … (${names.length})` : '')
}

export function duration(milliseconds: number): string {
  const seconds = Math.round(milliseconds / 1000)
  const minutes = Math.floor(seconds / 60) % 60
  const hours = Math.floor(seconds / 3600)
  const pad = (value: number) => String(value).padStart(2, '0')
  return hours > 0 ? `${hours}:${pad(minutes)}:${pad(seconds % 60)}` : `${minutes}:${pad(seconds % 60)}`
}

export function thousands(value: number): string {
  return Math.round(value).toLocaleString('en-US')
}

export function bytes(value: number): string {
  const units = ['B', 'kB', 'MB', 'GB', 'TB']
  const power = Math.min(units.length - 1, value < 1000 ? 0 : Math.floor(Math.log10(value) / 3))
  const scaled = value / 1000 ** power
  return `${power === 0 || scaled >= 100 ? Math.round(scaled) : scaled.toFixed(1)} ${units[power]}`
}

export function peakRssBytes(): number {
  return process.resourceUsage().maxRSS * 1024
}

/** Formats a table. The first row is the heading; numbers are right-aligned. */
export function table(rows: readonly (readonly (string | number)[])[]): string {
  const cells = rows.map((row) => row.map((cell) => (typeof cell === 'number' ? figure(cell) : printable(cell))))
  const widths = rows[0].map((_, column) => Math.max(...cells.map((row) => row[column].length)))
  const isNumeric = rows[0].map((_, column) => typeof rows.at(-1)![column] === 'number')
  return cells
    .map((row) => row.map((cell, i) => (isNumeric[i] ? cell.padStart(widths[i]) : cell.padEnd(widths[i]))))
    .map((row) => row.join('  ').trimEnd())
    .join('\n')
}

function figure(value: number): string {
  if (Number.isInteger(value)) return String(value)
  return Math.abs(value) < 1e-3 || Math.abs(value) >= 1e5 ? value.toExponential(2) : value.toPrecision(4)
}

/** Smaller files are downloaded before a bar would be drawn. */
const MIN_BAR_BYTES = 1_000_000

/** One bar is for all files that come at the same time. */
export function showDownloads(): (progress: DownloadProgress) => void {
  const add = sumOfDownloads()
  let bar = new Progress()
  return (download) => {
    const { files, isNew, receivedBytes, byteLength, keptBytes } = add(download)
    if (isNew) {
      bar.clear()
      if (files === 1) bar = new Progress()
      const kept = download.receivedBytes > 0 ? `, ${bytes(download.receivedBytes)} of it already here` : ''
      say(`Loading ${colors.bold(printable(download.name))}, ${bytes(download.byteLength)}${kept}`)
    }
    if (byteLength >= MIN_BAR_BYTES) bar.updateBytes(receivedBytes, byteLength, keptBytes)
    if (receivedBytes >= byteLength) bar.end()
  }
}
