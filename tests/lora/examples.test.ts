// Runs every @example in the docstrings of layers, adapters, kernels and hosts.

import { readFileSync } from 'node:fs'
import { join } from 'node:path'
import { expect, test } from 'vitest'
import * as lowrank from '../../src/api/node.js'
import { MemoryDirectory } from '../../src/api/node.js'
import { filesIn, root } from '../structure/project.js'
import { random } from './matrices.js'

/** The values that each @example uses without defining them. */
function scope() {
  const adapter = new lowrank.LoraAdapter({ rank: 2 })
  adapter.addLayer('model.layers.0.self_attn.q_proj', random(8, 6, 1))
  adapter.addEmbedding('model.embed_tokens', random(2, 32, 2), random(6, 2, 3))
  const [baseWeight, x, dy] = [random(8, 6, 4), random(3, 6, 5), random(3, 8, 6)]
  const directory = new MemoryDirectory({}, 'adapter')
  const log = { log: () => {} }
  return { ...lowrank, adapter, baseWeight, x, dy, directory, console: log }
}

const sources = [
  ...filesIn('src/lora', ['.ts']),
  ...filesIn('src/lora/peft', ['.ts']),
  ...['api/platform/platform', 'api/platform/web-runtime', 'core/kernels/index'].map((name) => `src/${name}.ts`),
]
const examples = sources.flatMap((path) => {
  const comments = readFileSync(join(root, path), 'utf8').matchAll(/\/\*\*(.*?)\*\//gs)
  return [...comments].flatMap(([, comment], i) => {
    const example = comment.split('@example\n')[1]
    return example === undefined ? [] : [{ name: `${path} ${i}`, code: example.replace(/^\s*\* ?/gm, '') }]
  })
})

test('there are some', () => expect(examples.length).toBeGreaterThanOrEqual(12))

test.each(examples)('$name', async ({ code }) => {
  const names = scope()
  const body = `return (async () => {\n${code}\n})()`
  await new Function(...Object.keys(names), body)(...Object.values(names))
})
