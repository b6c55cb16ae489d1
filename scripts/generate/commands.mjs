// Writes docs/commands.md: the help of each command, from the tables that the command line reads its options by.
//
//     node scripts/build.mjs && node scripts/generate/commands.mjs            writes the page
//     node scripts/build.mjs && node scripts/generate/commands.mjs --check    fails if the page is out of date

import { readFileSync, writeFileSync } from 'node:fs'
import { fileURLToPath } from 'node:url'
import { COMMANDS } from '../../dist/cli/program.js'
import { commandHelp } from '../../dist/cli/show/help.js'

const page = fileURLToPath(new URL('../../docs/commands.md', import.meta.url))
const parts = [
  '# Commands',
  'Each command with all its options, as `lowrank COMMAND --help` shows them. A run file for `lowrank train --config` has the same options with the names of the code: `learningRate` for `--learning-rate`. This page is made by `scripts/generate/commands.mjs`.',
]
for (const load of Object.values(COMMANDS)) {
  const command = await load()
  parts.push(`## ${command.name}`, '```text', await commandHelp(command, false), '```')
}
const text =
  `${parts.join('\n\n').replaceAll('```text\n\n', '```text\n').replaceAll('\n\n```\n', '\n```\n')}\n`.replace(
    /\n\n```\n$/,
    '\n```\n',
  )
if (!process.argv.includes('--check')) writeFileSync(page, text)
else if (readFileSync(page, 'utf8') !== text) {
  console.error('docs/commands.md is not up to date. Run node scripts/build.mjs && node scripts/generate/commands.mjs')
  process.exitCode = 1
}
