// Renders the help texts from the same declarations that parse the command line.

import { createColors } from 'picocolors'
import { aliasOf, type Command, flagOf, nameOf } from '../options.js'

const COLUMN = 31
/** Longer lines are hard to read. We never wrap below MIN_COLUMNS: a narrower terminal breaks the lines itself. */
const MAX_COLUMNS = 110
const MIN_COLUMNS = 60

export function programHelp(commands: readonly Pick<Command, 'name' | 'summary'>[], useColor: boolean): string {
  const { bold, cyan } = createColors(useColor)
  return [
    'lowrank trains LoRA adapters for ONNX models. It also runs, merges and inspects them.',
    '',
    bold('Usage'),
    '  lowrank <command> [options]',
    '',
    bold('Commands'),
    ...commands.map(({ name, summary }) => `  ${cyan(name.padEnd(17))}${summary}`),
    '',
    bold('Options'),
    `  ${cyan('--help'.padEnd(17))}show this text. After a command: show its options and examples`,
    `  ${cyan('--version'.padEnd(17))}show the version`,
    '',
    bold('Examples'),
    '  lowrank init',
    '  lowrank train --model HuggingFaceTB/SmolLM2-135M-Instruct --data chats.jsonl --out my-adapter',
    '  lowrank generate --adapter my-adapter --prompt "Once upon a time"',
    '  lowrank merge --base HuggingFaceTB/SmolLM2-135M-Instruct --adapter my-adapter --out my-model',
    '',
    'Exit codes: 0 done, 1 an error (the message says what to do), 2 a wrong command line (such as an option',
    'that does not exist, or a value that is not valid), 70 a bug in lowrank, 130 stopped by Ctrl-C or SIGTERM.',
  ].join('\n')
}

export async function commandHelp(command: Command, useColor: boolean, columns = MAX_COLUMNS): Promise<string> {
  const { bold, cyan } = createColors(useColor)
  const { subject = [] } = command
  const alias = aliasOf(command.options)
  const lineOf = (key: string) => {
    const option = command.options[key]
    const flag = option.placeholder === undefined ? flagOf(key) : `${flagOf(key)} ${option.placeholder}`
    const notes = [
      option.isRequired ? 'required' : '',
      alias?.key === key ? `or ${alias.flag}` : '',
      option.isRepeatable ? 'repeatable' : '',
      option.bounds ?? '',
      option.fallback === undefined ? '' : `default ${option.fallback}`,
    ].filter((note) => note !== '')
    const plain = notes.length === 0 ? option.about : `${option.about} (${notes.join(', ')})`
    const about = wrap(plain, Math.max(MIN_COLUMNS, Math.min(columns, MAX_COLUMNS)) - COLUMN).join(
      `\n${' '.repeat(COLUMN)}`,
    )
    // If a flag is too long for its column, its text begins on the next line.
    const gap = flag.length + 2 < COLUMN ? ' '.repeat(COLUMN - 2 - flag.length) : `\n${' '.repeat(COLUMN)}`
    return `  ${cyan(flag)}${gap}${about}`
  }
  const { sections = {} } = command
  const listed = new Set(Object.values(sections).flat())
  const rest = Object.keys(command.options).filter((key) => !listed.has(key))
  const all = [...Object.entries(sections), [listed.size > 0 ? 'More options' : 'Options', rest] as const]
  const shown = all.filter(([, keys]) => keys.length > 0)
  const needed = Object.entries(command.options).filter(([key, option]) => option.isRequired && !subject.includes(key))
  const words = [
    ...subject.map((key) => {
      const { isRequired, isRepeatable } = command.options[key]
      return `${isRequired ? nameOf(key) : `[${nameOf(key)}]`}${isRepeatable ? ' …' : ''}`
    }),
    ...needed.map(([key, option]) => `${flagOf(key)} ${option.placeholder}`),
    '[options]',
  ]
  return [
    command.about,
    '',
    bold('Usage'),
    `  lowrank ${command.name} ${words.join(' ')}`,
    ...subject.map((key) => `  ${nameOf(key)} is the value of ${flagOf(key)}, which may be left out in front of it`),
    '',
    ...shown.flatMap(([title, keys]) => [bold(title), ...keys.map(lineOf), '']),
    ...Object.entries((await command.more?.()) ?? {}).flatMap(([title, texts]) => [bold(title), ...texts, '']),
    ...(command.examples.length === 0 ? [] : [bold('Examples'), ...command.examples.map((example) => `  ${example}`)]),
  ].join('\n')
}

function wrap(text: string, width: number): string[] {
  const lines = ['']
  for (const word of text.split(' ')) {
    const line = lines.at(-1)!
    if (line === '') lines[lines.length - 1] = word
    else if (line.length + 1 + word.length <= width) lines[lines.length - 1] = `${line} ${word}`
    else lines.push(word)
  }
  return lines
}
