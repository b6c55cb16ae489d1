// Picture files, read by sharp if it is installed.

import { readFileSync, writeFileSync } from 'node:fs'
import { createRequire } from 'node:module'
import { join } from 'node:path'
import * as ort from 'onnxruntime-node'
import { describe, expect, it } from 'vitest'
import { loadModel, openSession, train } from '../../../src/api/node.js'
import { decodeWithSharp } from '../../../src/model/images/node/decode.js'
import { lowrank, scratchFolder } from '../../app/cli/lowrank.js'

const folder = 'tests/golden/image-classification'
const scratch = scratchFolder()

/** The part of sharp that this test uses. */
type Sharp = (file: string) => {
  withMetadata(options: object): { jpeg(options: object): { toFile(path: string): Promise<unknown> } }
}

function installed(): Sharp | undefined {
  try {
    return createRequire(import.meta.url)('sharp') as Sharp
  } catch {
    return undefined
  }
}

const sharp = installed()

describe.skipIf(sharp === undefined)('pictures in files', () => {
  it("have Pillow's pixels, from a path and from bytes", async () => {
    const { image } = JSON.parse(readFileSync(`${folder}/resampled.json`, 'utf8'))
    for (const file of [`${folder}/picture.png`, new Uint8Array(readFileSync(`${folder}/picture.png`))]) {
      const { data, width, height } = await decodeWithSharp(file)
      expect({ data: Array.from(data), width, height }).toEqual(image)
    }
  })

  it('are turned as the camera was held', async () => {
    const turned = join(scratch, 'turned.jpg')
    await sharp!(`${folder}/picture.png`).withMetadata({ orientation: 6 }).jpeg({}).toFile(turned)
    expect(await decodeWithSharp(turned)).toMatchObject({ width: 14, height: 23 })
  })

  it('train and are classified; a broken one is named', async () => {
    const broken = join(scratch, 'broken.png')
    writeFileSync(broken, 'no picture')
    const data = [
      { image: `${folder}/picture.png`, label: 'a' },
      { image: { data: new Uint8Array(192), width: 8, height: 8 }, label: 'b' },
    ]
    const model = await loadModel(`${folder}/vit`, { runtime: { module: ort } })
    const options = { model, task: 'image-classification', maxSteps: 1, threads: 1 } as const
    const { adapter } = await train({ ...options, data })
    const session = await openSession(model, { adapters: { own: adapter } })
    const { label } = await session.classify(`${folder}/picture.png`, { adapter: 'own' })
    expect(['a', 'b']).toContain(label)
    await expect(session.classify([broken], { adapter: 'own' })).rejects.toThrow(/image 1, .*broken\.png: the picture/)
    await session.dispose()
    const training = train({ ...options, data: [...data, { image: broken, label: 'a' }] })
    await expect(training).rejects.toThrow(/data\[2\], image, .*broken\.png: the picture cannot be read/)
    await model.close()
  })

  it('are classified on the command line', async () => {
    const model = `${folder}/vit-classifier`
    const one = await lowrank('classify', '--model', model, '--image', `${folder}/picture.png`)
    expect(one.stdout).toMatch(/^(blue|green|red) 0\.\d{3}\n$/)
    const { stdout } = await lowrank('classify', '--model', model, '--image', `${folder}/picture.png`, '--json')
    expect(JSON.parse(stdout).results[0]).toMatchObject({ image: `${folder}/picture.png`, adapter: null })
  })
})
