// Runs every block of docs/transformers-js.md in a project with both packages installed.

import { mkdirSync, readFileSync, symlinkSync } from 'node:fs'
import { dirname, join } from 'node:path'
import { afterAll, beforeAll, describe, expect, it } from 'vitest'
import { briefly, type Consumer, installConsumer, repository } from '../../package/consumer.js'
import { installedIn, transformers } from './installed.js'

const page = readFileSync(join(repository, 'docs/transformers-js.md'), 'utf8')
const blocks = [...page.matchAll(/^```js\n(.*?)^```$/gms)].map(([, text]) => text)

describe.skipIf(transformers === undefined)('docs/transformers-js.md', () => {
  let consumer: Consumer
  beforeAll(() => {
    consumer = installConsumer('transformers')
    // The ONNX Runtime of transformers.js is also what trains.
    for (const name of ['@huggingface/transformers', 'onnxruntime-node']) {
      const link = join(consumer.folder, 'node_modules', name)
      mkdirSync(dirname(link), { recursive: true })
      symlinkSync(join(installedIn, 'node_modules', name), link, 'junction')
    }
    for (const folder of ['models', 'tests']) {
      symlinkSync(join(repository, folder), join(consumer.folder, folder), 'junction')
    }
  })
  afterAll(() => consumer?.remove())

  it('has a block for each task, of about ten lines', () => {
    for (const task of ['text-generation', 'feature-extraction', 'text-classification', 'image-classification']) {
      const block = blocks.find((text) => text.includes(`pipelineWithAdapters('${task}'`))
      expect(block?.trim().split('\n').length, task).toBeLessThanOrEqual(11)
    }
  })

  it('goes from text to an answer in at most 15 lines', () => {
    const block = blocks.find((text) => text.includes('await train('))
    expect(block?.trim().split('\n').length).toBeLessThanOrEqual(15)
  })

  it.each(blocks)('runs: %s', (text) => {
    consumer.write('block.mjs', briefly(text))
    const { status, stderr } = consumer.node('block.mjs')
    expect(status, `${text}\n${stderr}`).toBe(0)
  })
})
