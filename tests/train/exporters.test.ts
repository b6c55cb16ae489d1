import { readdirSync } from 'node:fs'
import { fileURLToPath } from 'node:url'
import * as ort from 'onnxruntime-node'
import { describe, expect, it } from 'vitest'
import { loadModel, MemoryDirectory } from '../../src/api/node.js'
import { NodeDirectory } from '../../src/files/io/node/files.js'
import { train as trainAdapter } from '../../src/train/train.js'
import { some } from '../thorough.js'

const models = fileURLToPath(new URL('../golden/models', import.meta.url))
async function train(name: string, out: MemoryDirectory) {
  const runtime = { module: ort }
  const directory = new NodeDirectory(`${models}/${name}`)
  const model = await loadModel(directory, { runtime })
  const data = [{ text: 'In the beginning' }, { prompt: 'And God said, Let there be', completion: ' light.' }]
  try {
    return await trainAdapter({ model, data, batchSize: 2, maxSteps: 4, learningRate: 1e-2, threads: 1, out })
  } finally {
    await model.close()
  }
}

describe('models of other exporters', () => {
  const names = readdirSync(models)
  it.each(some(names))('%s is trained', async (name) => {
    const { report } = await train(name, new MemoryDirectory())
    expect(report.trainLoss[3]).toBeLessThan(report.trainLoss[0] - 0.01)
  })
})
