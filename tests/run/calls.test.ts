// Errors of session calls with wrong arguments.

import { loadModel, openSession } from 'lowrank'
import { beforeAll, expect, it } from 'vitest'
import { enginesHere } from '../engines-here.js'

beforeAll(enginesHere)

it('says what to do about an empty list of outputs, an adapter that is not there, and a call without await', async () => {
  const model = await loadModel('models/union-3m')
  const session = await openSession(model)
  const input_ids = { type: 'int64', data: BigInt64Array.of(1n), dims: [1, 1] } as const
  await expect(session.run({ input_ids }, { outputNames: [] })).rejects.toThrow(
    'outputNames: it is empty. Leave it out to get all outputs',
  )
  await expect(session.generate('a', { adapter: 'sea' })).rejects.toThrow(
    'adapter: the session has no adapter "sea". It has no adapters: add this one with session.add',
  )
  const calls = [session.generate('a'), session.add('sea', 'tests/golden/peft/f32')]
  const told = calls.map((call) => expect(call).rejects.toThrow('Write await before each call'))
  await session.dispose()
  await Promise.all(told)
  await expect(session.run({ input_ids })).rejects.toThrow('Write await before each call')
  await model.close()
})
