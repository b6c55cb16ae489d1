// Commands that are stopped while they work: by Ctrl-C, and by SIGTERM.

import { existsSync, readdirSync, readFileSync } from 'node:fs'
import { join } from 'node:path'
import { beforeAll, describe, expect, it } from 'vitest'
import { lowrankHere } from './in-process.js'
import { digest, hiddenBeside, large } from './large-merge.js'
import { DATA, lowrank, MODEL, type Outcome, scratchFolder, start } from './lowrank.js'

const scratch = scratchFolder()

/** The one JSON document on stdout. */
function documentOf({ code, stdout, stderr }: Outcome) {
  expect(code, stderr).toBe(0)
  const document = JSON.parse(stdout)
  expect(Object.keys(document)[0]).toBe('version')
  expect(document.version).toBe(1)
  return document
}

/** Waits for an adapter's config, the last of its files to get its name. */
async function appears(path: string): Promise<void> {
  for (let i = 0; i < 3000 && !existsSync(path); i++) await new Promise((resolve) => setTimeout(resolve, 20))
}

describe('lowrank train', () => {
  const args = ['train', '--model', MODEL, '--data', DATA, '--batch-size', '4', '--max-steps', '10', '--threads', '1']
  const whole = join(scratch, 'whole run')
  let straight: { trainLoss: number[] }
  beforeAll(async () => {
    straight = documentOf(await lowrankHere(...args, '--out', whole, '--json'))
  })

  it.each(['SIGINT', 'SIGTERM', 'SIGHUP'] as const)(
    'stops at %s after the step, saves, and goes on with --resume as if it had not stopped',
    async (signal) => {
      const stopped = join(scratch, `stopped ${signal}`)
      const { child, done } = start([...args, '--out', stopped, '--save-every', '1', '--json'])
      await appears(join(stopped, 'adapter_config.json'))
      child.kill(signal)
      const first = await done
      expect(first.code, first.stderr).toBe(130)
      expect(first.stderr).toMatch(/Finishing the step.*, then saving\./)
      const { steps, interrupted } = JSON.parse(first.stdout)
      expect(interrupted).toBe(true)
      expect(steps).toBeLessThan(10)
      expect(documentOf(await lowrankHere('inspect', stopped, '--json')).layers).toHaveLength(42)

      const resumed = documentOf(await lowrankHere(...args, '--out', stopped, '--resume', '--json'))
      expect(resumed.trainLoss).toEqual(straight.trainLoss)
      const weights = (folder: string) => readFileSync(join(folder, 'adapter_model.safetensors'))
      expect(weights(stopped).equals(weights(whole))).toBe(true)
    },
  )

  it('stops at once at the second Ctrl-C, and keeps the last complete adapter', async () => {
    const out = join(scratch, 'twice')
    // Steps are long, so that the second Ctrl-C comes during a step.
    const size = ['--batch-size', '30', '--epochs', '99', '--save-every', '1']
    const { child, done } = start(['train', '--model', MODEL, '--data', DATA, '--out', out, ...size])
    await appears(join(out, 'adapter_config.json'))
    child.stderr?.on('data', (text: string) => {
      if (text.includes('Press Ctrl-C again')) child.kill('SIGINT')
    })
    child.kill('SIGINT')
    const { code, stderr } = await done
    expect(code).toBe(130)
    expect(stderr).not.toContain('Stopped after')
    expect(documentOf(await lowrankHere('inspect', out, '--json')).layers).toHaveLength(42)
  })
})

describe.each(['SIGINT', 'SIGTERM', 'SIGHUP'] as const)('%s', (signal) => {
  it('stops a merge, which leaves nothing, and the same command starts again', async () => {
    const { base, adapter } = await large(scratch)
    const whole = join(scratch, 'whole merge')
    const args = ['merge', '--base', base, '--adapter', adapter]
    if (!existsSync(whole)) expect((await lowrank(...args, '--out', whole)).code).toBe(0)
    const out = join(scratch, `stopped by ${signal}`)
    const files = () => hiddenBeside(out).flatMap((work) => readdirSync(work, { recursive: true, encoding: 'utf8' }))
    const { child, done } = start([...args, '--out', out, '--threads', '1'], true)
    while (files().length < 3 && child.exitCode === null) await new Promise((resolve) => setTimeout(resolve, 1))
    child.kill(signal)
    const { code, stderr } = await done
    expect(stderr).toMatch(/Stopping\. --out does not change\.( Press Ctrl-C again to stop at once\.)?\nStopped\.\n$/)
    expect(code).toBe(130)
    expect([existsSync(out), hiddenBeside(out)]).toEqual([false, []])
    expect((await lowrank(...args, '--out', out)).code).toBe(0)
    expect(digest(out)).toBe(digest(whole))
    expect(hiddenBeside(out)).toEqual([])
  })
})
