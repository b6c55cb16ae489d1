// Settings that PEFT takes although they look wrong or do nothing: the merged weights are PEFT's
// (tests/golden/settings, scripts/golden/settings.py).

import { readdirSync } from 'node:fs'
import { describe, expect, test } from 'vitest'
import { MemoryDirectory } from '../../../src/api/node.js'
import { NodeDirectory } from '../../../src/files/io/node/files.js'
import { deviation, goldenPath, tensorsIn } from '../../golden.js'
import { mergeCheckpoint } from '../toolkit.js'
import { baseOf, sketchOf } from './formula-base.js'

const CASES = readdirSync(goldenPath('settings'), { withFileTypes: true }).filter((entry) => entry.isDirectory())

describe.each(CASES.map(({ name }) => name))('%s', (name) => {
  const adapter = new NodeDirectory(goldenPath('settings', name, 'adapter'))

  test('merges to the weights that PEFT gives', async () => {
    const [base, out] = [await baseOf(sketchOf('settings')), new MemoryDirectory()]
    await mergeCheckpoint(base, adapter, out)
    const wanted = await tensorsIn(new NodeDirectory(goldenPath('settings', name)), 'merged.safetensors')
    const [before, after] = [await tensorsIn(base), await tensorsIn(out)]
    expect(wanted.size).toBe(2)
    for (const [key, { data }] of wanted) expect(deviation(after.get(key)!.data, data), key).toBeLessThan(1e-6)
    for (const [key, { data }] of after) {
      if (!wanted.has(key)) expect(deviation(data, before.get(key)!.data), key).toBe(0)
    }
  })
})
