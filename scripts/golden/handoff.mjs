// Hands the runs of tests/golden/handoff/cases.json off, and trains them here, for handoff.py to compare.
// Usage: node scripts/golden/handoff.mjs OUT

import { mkdirSync, readFileSync, writeFileSync } from 'node:fs'
import { handoff } from '../../dist/api/node/handoff.js'
import { saveAdapter, train } from '../../dist/api/node.js'

const [out] = process.argv.slice(2)
const cases = JSON.parse(readFileSync('tests/golden/handoff/cases.json', 'utf8'))
mkdirSync(out, { recursive: true })
for (const [name, options] of Object.entries(cases)) {
  await handoff(options, { to: 'trl', out: `${out}/${name}` })
  if (options.task === undefined) await handoff(options, { to: 'trl', out: `${out}/${name}-records`, rows: 'records' })
  const norms = []
  const step = ({ gradientNorm }) => norms.push(gradientNorm)
  const { adapter, report } = await train({ ...options, on: { step } })
  await saveAdapter(adapter, `${out}/${name}-here`)
  writeFileSync(`${out}/${name}-here/losses.json`, JSON.stringify({ losses: report.trainLoss, norms }))
}
