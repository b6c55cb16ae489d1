// Commands with rare kinds of adapters: stacked experts, and PEFT's default targets.

import { readFileSync } from 'node:fs'
import { join } from 'node:path'
import { describe, expect, it } from 'vitest'
import { lowrankHere } from './in-process.js'
import { QUICK, root, scratchFolder } from './lowrank.js'

const scratch = scratchFolder()
const golden = join(root, 'tests', 'golden')

describe('stacks of experts', () => {
  const base = (file: string) => join(golden, 'experts', 'mixtral-base', `${file}.safetensors`)
  const adapter = join(golden, 'experts', 'mixtral')

  it('are shown, and found in a base of either form', async () => {
    const { stdout } = await lowrankHere('inspect', adapter, '--base', base('saved'), '--json')
    const { layers, fit } = JSON.parse(stdout)
    expect(layers.map(({ kind }: { kind: string }) => kind).sort()).toEqual(['linear', 'parameter', 'parameter'])
    expect(fit).toMatchObject({ fits: true, problems: [] })
    expect(fit.parts).toHaveLength(1 + 3 * 2 + 3)
    const stacked = JSON.parse((await lowrankHere('inspect', adapter, '--base', base('fused'), '--json')).stdout)
    expect(stacked.fit).toMatchObject({ fits: true, problems: [] })
    expect(stacked.fit.parts).toHaveLength(3)
  })

  it('are merged with threads as without', async () => {
    const files = await Promise.all(
      ['1', '2'].map(async (threads) => {
        const out = join(scratch, `experts-${threads}.safetensors`)
        const args = ['--base', base('fused'), '--adapter', adapter, '--out', out, '--threads', threads]
        expect(await lowrankHere('merge', ...args)).toMatchObject({ code: 0 })
        return readFileSync(out)
      }),
    )
    expect(files[0].equals(files[1])).toBe(true)
  })
})

it('trains the modules that PEFT would', async () => {
  const out = join(scratch, 'default')
  const { code, stderr } = await lowrankHere('train', ...QUICK, '--target-modules', 'default', '--out', out)
  expect(code, stderr).toBe(0)
  const config = JSON.parse(readFileSync(join(out, 'adapter_config.json'), 'utf8'))
  expect(config.target_modules).toEqual(['q_proj', 'v_proj'])
})
