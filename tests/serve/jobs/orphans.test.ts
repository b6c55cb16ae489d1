// Processes of jobs whose server has ended: none of them stays, at whatever moment that was.

import { fork } from 'node:child_process'
import { once } from 'node:events'
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { expect, it } from 'vitest'
import { binary } from '../../app/cli/lowrank.js'

const PROGRAM = join(binary, '../../../serve/jobs/node/job-process.js')

it.each([
  ['before it has loaded', 0],
  ['while it loads', 300],
  ['while it trains', 3000],
])(
  'end if the server ends %s',
  async (_, ms) => {
    const folder = mkdtempSync(join(tmpdir(), 'lowrank-orphan-'))
    const data = join(folder, 'training.jsonl')
    writeFileSync(data, '{"text":"A boat sails."}\n'.repeat(4))
    const settings = { model: 'models/union-3m', data, task: 'causal-lm', batchSize: 1, saveEvery: 5, threads: 1 }
    // It would train for hours.
    writeFileSync(join(folder, 'settings.json'), JSON.stringify({ ...settings, epochs: 100_000 }))
    const child = fork(PROGRAM, ['train', folder, '5'], { stdio: ['ignore', 'ignore', 'inherit', 'ipc'], execArgv: [] })
    const ended = once(child, 'exit')
    await new Promise((resolve) => setTimeout(resolve, ms))
    child.disconnect()
    expect(await ended).toEqual([0, null])
    rmSync(folder, { recursive: true })
  },
  60_000,
)
