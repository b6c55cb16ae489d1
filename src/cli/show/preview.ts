// The examples of `lowrank train --preview`: tokens beside one another, and marked which of them count.

import type { PreviewExample } from '../../index.js'
import { printable } from './escape.js'
import { colors, print } from './terminal.js'

const [BETWEEN, OPEN, CLOSE, LINE_END] = ['│', '⟦', '⟧', '⏎']

export function printPreview(examples: readonly PreviewExample[]): void {
  for (const { where, tokens, label } of examples) {
    const counted = tokens.filter(({ counts }) => counts).length
    const target = label === undefined ? `${counted} of them count` : `label: ${label}`
    print(colors.bold(printable(`${where}: ${tokens.length} tokens, ${target}`)))
    let line = ''
    for (const [i, { text, counts }] of tokens.entries()) {
      const opens = counts && !tokens[i - 1]?.counts
      const closes = counts && !tokens[i + 1]?.counts
      const shown = text.split('\n').map(printable).join(LINE_END)
      line += `${opens ? OPEN : ''}${counts ? colors.green(shown) : shown}${closes ? CLOSE : ''}`
      const isLineEnd = text.endsWith('\n')
      if (!isLineEnd && i < tokens.length - 1) line += colors.dim(BETWEEN)
      if (isLineEnd || i === tokens.length - 1) {
        print(line)
        line = ''
      }
    }
    print('')
  }
  print(`${OPEN}…${CLOSE} counts for the loss. ${BETWEEN} stands between tokens, ${LINE_END} for the end of a line.`)
}
