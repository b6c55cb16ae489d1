// Loads files of org/model through the Hub's cache that the environment names: `node reverse_hub.mjs FILE …`, after a
// build.
import { openHub } from '../../dist/files/io/hub/node/open-hub.js'

const directory = await openHub({ kind: 'hub', id: 'org/model', revision: 'main', path: '' })
for (const file of process.argv.slice(2)) await (await directory.open(file)).close()
