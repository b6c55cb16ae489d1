// A loaded model used for training and a session at the same time: its graph is opened once, both give the same results
// as alone, and the session gets the trained adapter without loading again.

import { expect, it } from 'vitest'
import { type ByteSource, loadModel } from '../../src/api/node.js'
import { NodeDirectory } from '../../src/files/io/node/files.js'
import { ModelSession } from '../../src/run/model-session.js'
import { train } from '../../src/train/train.js'
import { inThread } from '../run/models.js'

/** Counts how often each file is opened. */
class CountingDirectory extends NodeDirectory {
  readonly opened: string[] = []
  override async open(path: string): Promise<ByteSource> {
    this.opened.push(path)
    return super.open(path)
  }
}

it('is opened once for a training, and for a session that runs meanwhile and takes the result', async () => {
  const directory = new CountingDirectory('tests/golden/text-classification/encoder')
  const model = await loadModel(directory, { runtime: inThread })
  const data = [
    { text: 'the sea was calm', label: 'calm' },
    { text: 'a happy day', label: 'glad' },
  ]
  const texts = data.map(({ text }) => text)
  const start = (on: object = {}) =>
    train({
      ...{
        model,
        task: 'text-classification',
        data,
        maxSteps: 8,
        learningRate: 2e-2,
        threads: 1,
        memory: 'low' as const,
        on,
      },
      config: { rank: 2, targetModules: ['query', 'value'] },
    })
  const alone = await start()
  const session = await ModelSession.open(model, { adapters: { mood: alone.adapter }, memory: 'low' })
  const before = await session.classify(texts, { adapter: 'mood' })
  const during: Promise<unknown>[] = []
  const { adapter, report } = await start({
    step: () => void during.push(session.classify(texts, { adapter: 'mood' })),
  })
  for (const result of await Promise.all(during)) expect(result).toEqual(before)
  expect(during).toHaveLength(8)
  expect(report.trainLoss).toEqual(alone.report.trainLoss)
  await session.add('again', adapter)
  expect(await session.classify(texts, { adapter: 'again' })).toEqual(before)
  expect(directory.opened.filter((path) => path.endsWith('.onnx'))).toEqual(['onnx/model.onnx'])
  await session.dispose()
  await model.close()
})
