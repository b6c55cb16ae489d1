// Pushes an adapter to a local server, and writes the files that the server received into a folder, for check_push.py.
// Usage: node scripts/golden/push.mjs ADAPTER OUT, after a build

import { mkdirSync, writeFileSync } from 'node:fs'
import { push } from '../../dist/api/node/handoff.js'
import { configureHub } from '../../dist/api/node.js'
import { startHub } from './hub_to_push.mjs'

const [adapter, out] = process.argv.slice(2)
const hub = await startHub()
configureHub({ endpoint: hub.endpoint, token: 'hf_test' })
await push(adapter, 'me/adapter')
mkdirSync(out, { recursive: true })
for (const [name, bytes] of hub.repositories.get('me/adapter').files) writeFileSync(`${out}/${name}`, bytes)
await hub.close()
