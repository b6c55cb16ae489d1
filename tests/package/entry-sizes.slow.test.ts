// The size of each part of the package in a bundler: the code that a program with only this part contains, and the code
// that it may load later. docs/stability.md has the limits.

import { readFileSync } from 'node:fs'
import { join } from 'node:path'
import { gzipSync } from 'node:zlib'
import { build, type Rolldown } from 'vite'
import { expect, it } from 'vitest'
import { repository } from './consumer.js'

const page = readFileSync(join(repository, 'docs', 'stability.md'), 'utf8')
/** | `import { LoraLayer } from 'lowrank'` | 40 kB | */
const rows = [...page.matchAll(/^\| `(import \{ (\w+) \} from '(lowrank[^']*)')` \| ([\d.]+) kB \|/gm)]

/** Returns the built file of an entry for browsers. */
function fileOf(entry: string): string {
  const { exports } = JSON.parse(readFileSync(join(repository, 'package.json'), 'utf8'))
  return join(repository, exports[entry.replace('lowrank', '.')].default)
}

it('has a limit for each entry', () => {
  expect(new Set(rows.map(([, , , entry]) => entry)).size).toBe(5)
})

it.each(rows.map(([, code, name, entry, limit]) => [code, name, entry, Number(limit)] as const))(
  '%s is within its limit',
  { timeout: 240_000 },
  async (_, name, entry, limit) => {
    const result = await build({
      configFile: false,
      logLevel: 'silent',
      root: repository,
      plugins: [
        {
          name: 'program',
          resolveId: (id) => (id === 'program' ? '\0program' : undefined),
          load: (id) => {
            if (id !== '\0program') return undefined
            return `import { ${name} } from ${JSON.stringify(fileOf(entry))}\nglobalThis.used = ${name}`
          },
        },
      ],
      worker: { format: 'es' },
      build: {
        write: false,
        target: 'es2022',
        rolldownOptions: {
          input: { program: 'program' },
          external: /^(hyparquet|@huggingface\/(hub|transformers)|@mlc-ai|onnxruntime)/,
        },
      },
    })
    const { output } = [result].flat()[0] as Rolldown.RolldownOutput
    const sizes = output.map((file) => gzipSync(file.type === 'chunk' ? file.code : file.source).byteLength)
    const total = sizes.reduce((sum, size) => sum + size, 0) / 1000
    console.log(`${name}: ${total.toFixed(1)} kB in ${output.length} files`)
    expect(total).toBeLessThanOrEqual(limit)
  },
)
