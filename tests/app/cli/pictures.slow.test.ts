// lowrank generate --image: texts about files of pictures, which sharp reads.

import { readFileSync } from 'node:fs'
import { createRequire } from 'node:module'
import { join } from 'node:path'
import { expect, it } from 'vitest'
import { NodeDirectory } from '../../../src/files/io/node/files.js'
import { loadTokenizer } from '../../../src/model/text/tokenizer.js'
import { lowrankHere } from './in-process.js'
import { root, scratchFolder } from './lowrank.js'

const scratch = scratchFolder()

/** The part of sharp that this test uses. */
type Sharp = (data: Buffer, options: object) => { png(): { toFile(path: string): Promise<unknown> } }

function installed(): Sharp | undefined {
  try {
    return createRequire(import.meta.url)('sharp') as Sharp
  } catch {
    return undefined
  }
}

const sharp = installed()

it.skipIf(sharp === undefined).each(['llava', 'idefics3', 'qwen2-vl'])(
  'writes what transformers and PEFT write with %s',
  async (name) => {
    const folder = join(root, 'tests/golden/graphs', name)
    const { cases, pictures } = JSON.parse(readFileSync(join(folder, 'golden/texts.json'), 'utf8'))
    const { messages, adapted } = cases[3]
    const { data, width, height } = pictures.wide
    const file = join(scratch, 'wide.png')
    await sharp!(Buffer.from(data, 'base64'), { raw: { width, height, channels: 3 } })
      .png()
      .toFile(file)
    const question = messages[0].content.find(({ type }: { type: string }) => type === 'text').text
    const { code, stdout, stderr } = await lowrankHere(
      ...['generate', '--model', folder, '--adapter', join(folder, 'golden/adapter'), '--allow-missing', '--json'],
      ...['--image', file, '--prompt', question, '--temperature', '0', '--max-new-tokens', '8'],
    )
    expect(code, stderr).toBe(0)
    const tokenizer = await loadTokenizer(new NodeDirectory(folder))
    expect(JSON.parse(stdout)).toMatchObject({ text: tokenizer.decode(adapted.ids), tokens: adapted.ids.length })
  },
)
