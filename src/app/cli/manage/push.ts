// lowrank push: sends an adapter's folder to the Hub.

import { counted } from '../../../core/base/errors.js'
import { flags } from '../flags.js'
import { ADAPTER, defineCommand, required, toggle } from '../options.js'
import { colors, printDocument, say } from '../show/terminal.js'

export const push = defineCommand({
  name: 'push',
  summary: 'send an adapter to the Hugging Face Hub',
  about: [
    'Sends the adapter’s own files: config, weights, chat template, model card and the records of its training. A new repository is private.',
    'The token is that of HF_TOKEN, or of hf auth login. It needs the right to write. Large files that arrived are not sent twice.',
  ].join('\n'),
  examples: [],
  subject: ['adapter', 'repository'],
  options: {
    adapter: required(ADAPTER, 'folder of the adapter'),
    repository: required('OWNER/NAME', 'the repository; lowrank makes it if there is none'),
    ...flags('PushOptions'),
    json: toggle('print one JSON document on stdout'),
  },
  async run({ adapter, repository, json, ...options }) {
    const handoff = await import('../../../api/node/handoff.js')
    const report = await handoff.push(adapter, repository, options)
    if (json) printDocument({ ...report })
    say(`Sent ${counted(report.files.length, 'file')}: ${colors.bold(report.url)}`)
    return 0
  },
})
