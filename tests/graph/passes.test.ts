import { expect, it } from 'vitest'
import { FORWARD_PASSES, runPasses, TRAINING_PASSES, type Work } from '../../src/graph/training/passes.js'

it('each pass comes behind those that give what it needs, and each fact has one giver', () => {
  const passes = [...FORWARD_PASSES, ...TRAINING_PASSES]
  const given: string[] = []
  for (const { name, needs = [], gives = [] } of passes) {
    for (const fact of needs) expect(given, `${name} needs ${fact}`).toContain(fact)
    given.push(...gives)
  }
  expect(new Set(given).size).toBe(given.length)
  expect(new Set(passes.map(({ name }) => name)).size).toBe(passes.length)
})

it('a pass that comes too early is refused by its name', async () => {
  const [last] = TRAINING_PASSES.slice(-1)
  await expect(runPasses([last], {} as Work)).rejects.toThrow(/pass declare shapes: it needs recomputed/)
})
