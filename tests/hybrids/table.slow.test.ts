// Compares hybrid models of each family and exporter with PEFT, for the table in docs/graphs.md. HYBRIDS is the folder
// that scripts/golden/hybrids.py makes. Without it, only the golden models are measured, and nothing is written.

import { existsSync, readdirSync, readFileSync, writeFileSync } from 'node:fs'
import { expect, it } from 'vitest'
import { UnsupportedError } from '../../src/api/node.js'
import { requireHandled } from '../../src/lora/requirements.js'
import { checkpointDifference, mergeDifference, openCell, sessionDifference, trainDifferences } from './cell.js'

const { HYBRIDS } = process.env
const WORK = HYBRIDS ?? 'tests/golden/hybrids'
const PAGE = 'docs/graphs.md'
const FILES = ['model.onnx', 'decoder_model_merged.onnx']
const [BEGIN, END] = ['<!-- hybrids: begin -->', '<!-- hybrids: end -->']

const cells = readdirSync(WORK).flatMap((family) =>
  existsSync(`${WORK}/${family}/adapter`)
    ? readdirSync(`${WORK}/${family}`)
        .filter((exporter) => FILES.some((file) => existsSync(`${WORK}/${family}/${exporter}/onnx/${file}`)))
        .map((exporter) => [family, exporter] as const)
    : [],
)
const rows = new Map<string, string>()

const shown = (number: number) => number.toExponential(0).replace('e-', 'e−')
const attempt = async (measure: () => Promise<string>) =>
  measure().catch((error: Error) => (error instanceof UnsupportedError ? 'refused' : error.message))

it.each(cells)('%s by %s', async (family, exporter) => {
  const cell = await openCell(`${WORK}/${family}`, exporter)
  const columns = [
    await attempt(async () => shown(await sessionDifference(cell))),
    await attempt(async () => shown(await mergeDifference(cell))),
    await attempt(async () => {
      requireHandled(cell.adapter, ['linear', 'parameter'], 'training')
      const { loss, gradient } = await trainDifferences(cell)
      return `${shown(loss)}, ${shown(gradient)}`
    }),
  ]
  await cell.close()
  const hasCheckpoint = existsSync(`${WORK}/${family}/merged`)
  if (hasCheckpoint) expect(await checkpointDifference(`${WORK}/${family}`)).toBeLessThan(1e-6)
  rows.set(`${family} | ${exporter}`, `| ${[family, exporter, ...columns].join(' | ')} |`)
})

it('has a row in the table for each', () => {
  const [before, rest] = readFileSync(PAGE, 'utf8').split(BEGIN)
  const [old, after] = rest.split(END)
  for (const line of old.split('\n')) {
    const [, key] = /^\| (\w+ \| [\w-]+) \|/.exec(line) ?? []
    if (key !== undefined && !rows.has(key)) rows.set(key, line)
  }
  const head = ['| family | by | session | merge | train: losses, gradients |', '| --- | --- | --- | --- | --- |']
  rows.delete('family | by')
  const table = [...head, ...[...rows.values()].sort()].join('\n')
  if (HYBRIDS !== undefined) writeFileSync(PAGE, `${before}${BEGIN}\n\n${table}\n\n${END}${after}`)
  const page = readFileSync(PAGE, 'utf8')
  for (const [family, exporter] of cells) expect(page).toContain(`| ${family} | ${exporter} |`)
})
