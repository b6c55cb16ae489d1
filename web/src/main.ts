// The page: choose a model, teach it, compare what it writes.

import { guarded } from './dom.js'
import { isolate, showMachine } from './machine.js'
import { setUpModels } from './models.js'
import { Trainer } from './train.js'
import { Writer } from './write.js'

showMachine()
await isolate()

const writer = new Writer()
const trainer = new Trainer((name, adapter) => writer.add(name, adapter))
const choose = setUpModels(async (open) => {
  await writer.use(open)
  trainer.use(open)
})

await guarded('The last run cannot be read', async () => {
  const choice = await trainer.restore()
  // The small model comes from the same server, so it is opened without a click.
  await choose(choice !== undefined && choice.kind !== 'folder' ? choice : { kind: 'bundled' })
})
