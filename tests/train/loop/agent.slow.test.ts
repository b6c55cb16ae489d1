// examples/agent.mjs: the bundled model learns from rewards alone to use a tool, and the better version serves.

import { execFile } from 'node:child_process'
import { promisify } from 'node:util'
import { expect, it } from 'vitest'

it('learns to call a tool, and serves what is better on other prompts', async () => {
  const { stdout } = await promisify(execFile)(process.execPath, ['examples/agent.mjs', '18'])
  const rewards = [...stdout.matchAll(/^episode .* (\d\.\d\d)$/gm)].map(([, reward]) => Number(reward))
  expect(rewards).toHaveLength(18)
  expect(Math.max(...rewards.slice(0, 3))).toBeLessThan(0.25)
  expect(Math.min(...rewards.slice(-3))).toBeGreaterThan(0.6)
  expect(stdout).toMatch(/at least 0\.\d+: .*\nagent-1[08] serves: The mint/)
})
