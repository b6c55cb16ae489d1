// Options that a task of `train` would ignore: each is refused by name, before the model is opened.

import { type TrainOptions, train } from 'lowrank'
import { expect, it } from 'vitest'

const FOR_RECORDS: Partial<TrainOptions> = {
  packing: true,
  sample: ['The sea'],
  newHead: true,
  decodeImage: async () => ({ data: new Uint8Array(3), width: 1, height: 1 }),
}
const FOR_GRPO: Partial<TrainOptions> = {
  rewards: [() => 1],
  graderModels: { judge: 'http://localhost:1/v1' },
  onTurn: () => undefined,
}
const FOR_DISTILL: Partial<TrainOptions> = { teacher: 'models/not-there' }

const ignored: [TrainOptions['task'], Partial<TrainOptions>][] = [
  [undefined, { ...FOR_GRPO, ...FOR_DISTILL }],
  ['dpo', { ...FOR_GRPO, ...FOR_DISTILL }],
  ['grpo', { ...FOR_RECORDS, ...FOR_DISTILL }],
  ['distill', { ...FOR_RECORDS, ...FOR_GRPO }],
]
const cases = ignored.flatMap(([task, options]) =>
  Object.entries(options).map(([name, value]) => [task, name, { [name]: value }] as const),
)

it.each(cases)('the task %s refuses %s', async (task, name, option) => {
  const run = train({ task, model: 'models/not-there', data: [{ prompt: 'The sea' }], on: {}, ...option })
  await expect(run).rejects.toMatchObject({ name: 'ConfigError', where: name })
})
