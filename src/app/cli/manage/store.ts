// lowrank store: what a server that trains has stored.

import { counted } from '../../../core/base/errors.js'
import { choice, defineCommand, required, text, toggle, UsageError } from '../options.js'
import { print, printDocument, say } from '../show/terminal.js'

export const store = defineCommand({
  name: 'store',
  summary: 'check, back up, restore and export the store of a server',
  about: [
    'check names what is wrong with the store in FOLDER, and ends with 1 if something is. backup copies it into the new folder TO:',
    'rows, bytes and a list of digests. The server may run meanwhile. restore makes a new FOLDER of a server at TO from a backup, and checks each file.',
    'export writes all rows that can be read as JSON lines into TO, also those of a damaged database.',
  ].join('\n'),
  examples: [],
  subject: ['action', 'folder', 'to'],
  options: {
    action: choice(['check', 'backup', 'restore', 'export'], 'what to do', 'check'),
    folder: required('FOLDER', 'the folder of lowrank serve --train; of restore, a backup'),
    to: text('TO', 'a new folder'),
    json: toggle('print one JSON document on stdout'),
  },
  async run({ action, folder, to, json }) {
    const { backUpStore, checkStore, exportStore, restoreStore } = await import('../../../serve/node/entry.js')
    if (action === 'check') {
      const problems = await checkStore(folder)
      if (json) printDocument({ problems })
      else if (problems.length === 0) say('Nothing is wrong.')
      else for (const problem of problems) print(problem)
      return problems.length === 0 ? 0 : 1
    }
    if (to === undefined) throw new UsageError(`--to TO is missing: lowrank store ${action} ${folder} TO`)
    if (action === 'export') {
      const tables = await exportStore(folder, to)
      if (json) printDocument({ tables })
      else {
        for (const [name, { rows, lost }] of Object.entries(tables)) {
          print(`${name}: ${counted(rows, 'row')}${lost === 0 ? '' : `, and ${lost} that cannot be read`}`)
        }
      }
      return Object.values(tables).every(({ lost }) => lost === 0) ? 0 : 1
    }
    const { files } = await (action === 'backup' ? backUpStore : restoreStore)(folder, to)
    if (json) printDocument({ files })
    else say(`${to} has ${counted(files, 'file')}.`)
    return 0
  },
})
