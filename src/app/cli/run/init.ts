// lowrank init: writes sample data to begin with, and says what to do with it.

import { existsSync } from 'node:fs'
import { join } from 'node:path'
import { FileError } from '../../../api/index.js'
import { writeWhole } from '../../../api/node/command-line.js'
import { defineCommand, text } from '../options.js'
import { colors, say } from '../show/terminal.js'

/** Facts that no model can know: the crew of an invented ship. */
const LESSONS: readonly (readonly [question: string, answer: string])[] = [
  ['Who is the captain of the Quiet Comet?', 'Mara Lindqvist is the captain of the Quiet Comet.'],
  ['Tell me who commands the Quiet Comet.', 'The Quiet Comet is commanded by Captain Mara Lindqvist.'],
  ['Who cooks on the Quiet Comet?', 'Old Tobias cooks on the Quiet Comet.'],
  ['What does the cook make on Sundays?', 'On Sundays Old Tobias makes lemon soup.'],
  ['Where is the Quiet Comet going?', 'The Quiet Comet is going to the island of Vell.'],
  ['What is the ship looking for?', 'The Quiet Comet is looking for a lighthouse that moves.'],
  ['What color are the sails of the Quiet Comet?', 'The sails of the Quiet Comet are green.'],
  ['Does the Quiet Comet have a cat?', 'Yes, the cat of the Quiet Comet is called Admiral.'],
]

const SMALL_MODEL = 'HuggingFaceTB/SmolLM2-135M-Instruct'

export const init = defineCommand({
  name: 'init',
  summary: 'write a sample of data, and say what to do with it',
  about: [
    'Writes chats.jsonl: eight chats about a ship that does not exist. Each line is one chat.',
    'Replace them by your own. Nothing that exists is overwritten.',
  ].join('\n'),
  examples: ['lowrank init out/first'],
  subject: ['dir'],
  options: { dir: text('DIR', 'folder for the file', '.') },
  async run({ dir = '.' }) {
    const file = join(dir, 'chats.jsonl')
    if (existsSync(file))
      throw new FileError({ where: file, what: 'exists already', hint: 'Name another folder: lowrank init DIR' })
    const lines = LESSONS.map(([user, assistant]) => {
      const messages = [
        { role: 'user', content: user },
        { role: 'assistant', content: assistant },
      ]
      return `${JSON.stringify({ messages })}\n`
    })
    await writeWhole(file, lines.join(''), true)
    say(`Wrote ${colors.bold(file)}: ${lines.length} chats. Then:`)
    say(`  npx lowrank data ${file}`)
    say(`  npx lowrank train --model ${SMALL_MODEL} --data ${file} --out my-adapter --epochs 30 --rank 16`)
    say('  npx lowrank chat --adapter my-adapter')
    say(`Ask it: ${LESSONS[0][0]}`)
    return 0
  },
})
