// Text from files on its way to a terminal: a name may hold sequences that move the cursor, hide lines or reorder them.

/** C0, DEL and C1 controls, line separators, and marks that change the direction of writing. */
const CONTROLS = /[\p{Cc}\u2028\u2029\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069]/gu

/** Control characters that a line may hold beside printable text: the end of a line, and colors. */
// biome-ignore lint/suspicious/noControlCharactersInRegex: the sequences that picocolors writes
const OURS = /\n|\x1b\[\d{1,2}m/g

/** One line of printable text: what a terminal would act on is written as '\x1b' or '\u202e'. */
export function printable(text: string): string {
  return text.replace(CONTROLS, escaped)
}

/** The same for a text that may have several lines and colors of ours. */
export function printableLines(text: string): string {
  let result = ''
  let end = 0
  for (const { 0: ours, index } of text.matchAll(OURS)) {
    result += printable(text.slice(end, index)) + ours
    end = index + ours.length
  }
  return result + printable(text.slice(end))
}

/** For prose: its own line ends, tabs and marks of direction stay. */
export function printableProse(text: string): string {
  return text.replace(/[^\P{Cc}\n\t]/gu, escaped)
}

/** JSON that means the same, without controls that JSON itself lets stand. */
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
