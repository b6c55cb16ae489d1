// Writes docs/commands.md: the help of each command, from the tables that the command line reads its options by.
//
//     node scripts/build.mjs && node scripts/generate/commands.mjs

import { writeFileSync } from 'node:fs'
import { fileURLToPath } from 'node:url'
import { COMMANDS } from '../../dist/app/cli/program.js'
import { commandHelp } from '../../dist/app/cli/show/help.js'

const PAGE = fileURLToPath(new URL('../../docs/commands.md', import.meta.url))
const HEAD = [
  '# Commands',
  'Each command with all its options, as `lowrank COMMAND --help` shows them. A run file for `lowrank train --config` has the same options with the names of the code: `learningRate` for `--learning-rate`. This page is made by `scripts/generate/commands.mjs`.',
]

export default async function made() {
  const parts = [...HEAD]
  for (const load of Object.values(COMMANDS)) {
    const command = await load()
    parts.push(`## ${command.name}`, '```text', await commandHelp(command, false), '```')
  }
  const text = `${parts.join('\n\n').replaceAll('```text\n\n', '```text\n').replaceAll('\n\n```\n', '\n```\n')}\n`
  return { 'docs/commands.md': text.replace(/\n\n```\n$/, '\n```\n') }
}

if (process.argv[1] === fileURLToPath(import.meta.url)) writeFileSync(PAGE, (await made())['docs/commands.md'])
