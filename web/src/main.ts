// The page: choose a model, teach it, compare what it writes.

import { guarded } from './dom.js'
import { setUpDrop } from './drop.js'
import { isolate, showMachine } from './machine.js'
import { type Device, setUpModels } from './models.js'
import { Trainer } from './train.js'
import { Writer } from './write.js'

await isolate()
void showMachine()

const reopen = (device: Device) => models.reopen(device)
const writer = new Writer(reopen)
const trainer = new Trainer((name, adapter) => writer.add(name, adapter), reopen)
const models = setUpModels(async (open) => {
  await writer.use(open)
  trainer.use(open)
})

setUpDrop({
  model: models.openFolder,
  adapter: (name, files) => writer.openFolder(name, files),
  pictures: (pictures) => trainer.learnFrom(pictures),
})

await guarded('The last run cannot be read', async () => {
  const choice = await trainer.restore()
  // The small model comes from the same server, so it is opened without a click.
  await models.choose(choice !== undefined && choice.kind !== 'folder' ? choice : { kind: 'bundled' })
})
