// lowrank handoff: writes a folder from which TRL continues a run on a machine with GPUs.

import { counted } from '../../../core/base/errors.js'
import { flags } from '../flags.js'
import { defineCommand, required, toggle } from '../options.js'
import { colors, printDocument, say } from '../show/terminal.js'
import { readRunFile } from './text-files.js'

export const handoff = defineCommand({
  name: 'handoff',
  summary: 'go on with a run elsewhere, on GPUs',
  about: [
    'Writes a folder for Hugging Face TRL: settings, rows, chat template, the adapter to start from, and a README with the commands.',
    'RUN is the folder of a run, or a file with the options of one, as for lowrank train --config.',
  ].join('\n'),
  examples: [
    'lowrank train --model models/union-3m --data models/data/scripture.jsonl --out out/to-hand-off --max-steps 4',
    'lowrank handoff out/to-hand-off --to trl --out out/for-trl',
  ],
  subject: ['run', 'out'],
  options: {
    run: required('DIR|FILE', 'the run: its folder, or a file with the options of lowrank train'),
    ...flags('HandoffOptions'),
    json: toggle('print one JSON document on stdout'),
  },
  async run({ run, to, out, base, rows, json }) {
    const { handoff: handOff } = await import('../../../api/node/handoff.js')
    const options = /\.(json|ya?ml)$/i.test(run) ? await readRunFile(run) : run
    const report = await handOff(options as string, { to, out, base, rows })
    if (json) printDocument({ ...report })
    for (const difference of report.differences) say(`note: ${difference}`)
    say(
      `Wrote ${colors.bold(report.out)}: ${counted(report.rows, 'row')}, ${counted(report.steps, 'step')}. Its README.md has the commands.`,
    )
    return 0
  },
})
