import { readFileSync } from 'node:fs'
import { describe, expect, it } from 'vitest'
import { loadModel, MemoryDirectory, UnsupportedError } from '../../../src/api/node.js'
import { joinGraphs } from '../../../src/train/graph/joined-graph.js'
import { defaultTask } from '../../../src/train/tasks/task-of-row.js'
import { tasksFor } from '../../../src/train/tasks/tasks.js'
import { train } from '../../../src/train/train.js'
import { cases } from '../../thorough.js'
import { checkGolden, encode, openTiny, ROWS, runtime } from './seq2seq-models.js'

describe.each(['t5', 'bart', 't5gemma'])('%s', (name) => {
  it.each(cases(name === 't5' ? [''] : ['-default'], name === 't5' ? ['-default'] : ['']))(
    "has PEFT's loss, gradients and 20 steps: targets%s",
    (targets) => checkGolden(name, targets),
  )

  it('cuts inputs and targets to a limit that is asked for, and keeps the ends of both', async () => {
    const model = await openTiny(name)
    const joined = await joinGraphs(model)
    const text = 'the sea '.repeat(60)
    const rows = [{ text, target: text }]
    const [example] = await encode(joined, rows, { maxLength: 20 })
    expect(example.source).toHaveLength(20)
    expect(example.target).toHaveLength(20)
    expect(example.target.at(-1)).toBe(model.eosTokenIds[0])
    if (name === 'bart') await expect(encode(joined, rows)).rejects.toThrow(/longer than the model can write/)
    await model.close()
  })
})

it('a model of sounds is refused', async () => {
  const model = await openTiny('whisper')
  const run = train({ model, data: ROWS, task: 'seq2seq', maxSteps: 1 })
  await expect(run).rejects.toThrow(/inputs of unknown meaning: input_features/)
  await model.close()
})

describe('a model that is not whole', () => {
  it.each([
    ['decoder_model_merged.onnx', /it is a decoder without its encoder.*got onnx\/decoder_model_merged/s],
    ['encoder_model.onnx', /it is an encoder without its decoder.*decoder_model_merged.onnx/s],
  ])('%s alone is refused', async (file, message) => {
    const names = ['config.json', 'tokenizer.json', 'tokenizer_config.json', `onnx/${file}`]
    const files = names.map((one) => [one, Uint8Array.from(readFileSync(`tests/golden/graphs/bart/${one}`))])
    const model = await loadModel(new MemoryDirectory(Object.fromEntries(files)), { runtime })
    const run = train({ model, task: 'seq2seq', data: ROWS, maxSteps: 1 })
    await expect(run).rejects.toThrow(message)
    await expect(run).rejects.toBeInstanceOf(UnsupportedError)
    await model.close()
  })
})

it('an encoder-decoder can be trained for this task alone', async () => {
  const model = await openTiny('t5')
  expect((await tasksFor(await joinGraphs(model))).map(({ name }) => name)).toEqual(['seq2seq'])
  expect(defaultTask(model)).toBe('seq2seq')
  await model.close()
})
