// Results of every kind, disturbed: processes that are killed at random changes to the file system, and several that
// write to one place at once, with slow renames. Each result is wholly one command's, and nothing is left beside it.
// WHOLE_ROUNDS=20 makes more rounds; WHOLE_SEED=n others.

import { spawn } from 'node:child_process'
import { existsSync, mkdirSync, mkdtempSync, readdirSync, readFileSync, rmSync, statSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { fileURLToPath } from 'node:url'
import { afterAll, beforeAll, describe, expect, it } from 'vitest'

const root = fileURLToPath(new URL('../../', import.meta.url))
const golden = (path: string) => join(root, 'tests/golden', path)
const LLAMA = golden('merge/llama')
const GRAPH = golden('models/llama-genai')
const PEFT = golden('peft/f32')

const rounds = Number(process.env.WHOLE_ROUNDS ?? 3)
const seed = Number(process.env.WHOLE_SEED ?? 1)

interface Kind {
  /** Name of the result. */
  readonly out: string
  /** A command for each of two variants, which give different bytes. */
  readonly args: (variant: 0 | 1) => string[]
}

const merge = (variant: 0 | 1) => [
  ...['merge', '--base', join(LLAMA, 'base'), '--adapter', join(LLAMA, 'adapter')],
  ...['--weight', variant === 0 ? '1' : '0.5', '--threads', '2'],
]
const convert = (to: string) => (variant: 0 | 1) => [
  ...['convert', join(LLAMA, 'adapter'), '--to', to, '--out-dtype', variant === 0 ? 'fp32' : 'fp16'],
  ...(to === 'gguf' ? ['--base', join(LLAMA, 'base')] : []),
]

const KINDS: Record<string, Kind> = {
  'a merged folder': { out: 'out', args: (variant) => [...merge(variant), '--max-shard-size', '20KB'] },
  'a merged file': { out: 'out.safetensors', args: merge },
  'a merged graph with its data file': {
    out: 'out.onnx',
    args: (variant) => [
      ...['merge', '--base', join(GRAPH, 'onnx/model.onnx'), '--adapter', join(GRAPH, 'golden/adapter-init')],
      ...['--weight', variant === 0 ? '1' : '0.5'],
    ],
  },
  'an unmerged folder': {
    out: 'out',
    args: (variant) => ['un'.concat(merge(variant)[0]), '--merged', ...merge(variant).slice(2)],
  },
  'a combined adapter': {
    out: 'out',
    args: (variant) => [
      ...['combine', '--adapter', PEFT, '--adapter', golden('peft/rslora'), '--weight', variant === 0 ? '1' : '0.5'],
      ...['--out-dtype', variant === 0 ? 'fp32' : 'fp16'],
    ],
  },
  'a resized adapter': { out: 'out', args: (variant) => ['resize', PEFT, '--rank', variant === 0 ? '2' : '3'] },
  'an extracted adapter': {
    out: 'out',
    args: (variant) => [
      ...['extract', '--base', join(LLAMA, 'base'), '--fine-tuned', join(LLAMA, 'merged.safetensors')],
      ...['--rank', variant === 0 ? '2' : '3'],
    ],
  },
  'a plain adapter': {
    out: 'out',
    args: (variant) => [
      ...['to-plain', golden(variant === 0 ? 'peft/pissa' : 'peft/olora')],
      ...['--base', join(root, 'models/union-3m')],
    ],
  },
  'a converted folder of PEFT': { out: 'out', args: convert('peft') },
  'a converted folder of mlx-lm': { out: 'out', args: convert('mlx') },
  'a converted GGUF file': { out: 'out.gguf', args: convert('gguf') },
  'a converted .onnx_adapter': { out: 'out.onnx_adapter', args: convert('onnx-adapter') },
  'a page': {
    out: 'out.html',
    args: (variant) => ['inspect', variant === 0 ? PEFT : golden('peft/rslora'), '--overwrite'],
  },
}

const outFlag = (name: string) => (name === 'a page' ? '--html' : '--out')

let scratch: string
beforeAll(() => {
  scratch = mkdtempSync(join(tmpdir(), 'whole-results-'))
})
afterAll(() => rmSync(scratch, { recursive: true, force: true }))

interface Ended {
  readonly code: number | null
  readonly signal: string | null
  readonly stderr: string
}

/** @param kill before which change in the folder; 0 to count them */
function run(args: string[], { kill, folder, isSlow = false }: { kill?: number; folder: string; isSlow?: boolean }) {
  const preload = (name: string) => ['--import', new URL(`../../scripts/stress/${name}.mjs`, import.meta.url).href]
  const loaded = [...(isSlow ? preload('slow-calls') : []), ...(kill === undefined ? [] : preload('kill-call'))]
  const env = { ...process.env, KILL_CALL: `${kill} ${folder}` }
  const child = spawn(process.execPath, [...loaded, join(root, 'dist/cli/main.js'), ...args], { env })
  let stderr = ''
  child.stderr.on('data', (text) => {
    stderr += text
  })
  return new Promise<Ended>((resolve) => {
    child.on('close', (code, signal) => resolve({ code, signal, stderr }))
  })
}

/** All files of a result by name, but for the record of a merge, which says which of them were kept. */
function contentOf(folder: string, out: string): Map<string, string> {
  const isFolder = !out.includes('.')
  const from = isFolder ? join(folder, out) : folder
  const names = readdirSync(from, { recursive: true, encoding: 'utf8' })
  const files = names.filter((name) => statSync(join(from, name)).isFile() && name !== 'lowrank-merge.json')
  const own = files.filter((name) => isFolder || name.startsWith(out))
  return new Map(own.sort().map((name) => [name, readFileSync(join(from, name), 'base64')]))
}

const hiddenIn = (folder: string) => readdirSync(folder).filter((name) => name.startsWith('.'))

/** Numbers that look random: the same for the same seed. */
function randomFrom(start: number) {
  let state = start * 2654435761 + 12345
  return (below: number) => {
    state = (Math.imul(state, 1664525) + 1013904223) >>> 0
    return Math.floor((state / 2 ** 32) * below)
  }
}

describe.each(Object.entries(KINDS))('%s', (name, { out, args }) => {
  const random = randomFrom(seed + Object.keys(KINDS).indexOf(name) * 100)
  const commandIn = (folder: string, variant: 0 | 1) => [...args(variant), outFlag(name), join(folder, out)]
  const expected: Map<string, string>[] = []
  let changes = 0
  beforeAll(async () => {
    for (const variant of [0, 1] as const) {
      const folder = join(scratch, `${name} ${variant}`)
      mkdirSync(folder)
      const { code, stderr } = await run(commandIn(folder, variant), { folder, kill: 0 })
      expect(code, stderr).toBe(0)
      changes = Number(/changes: (\d+)/.exec(stderr)?.[1])
      expect(changes).toBeGreaterThan(3)
      expected.push(contentOf(folder, out))
      expect(hiddenIn(folder)).toEqual([])
    }
    expect(expected[0]).not.toEqual(expected[1])
  })

  it('is whole or absent after a kill, and the same command again gives it', async () => {
    let left = 0
    for (let round = 0; round < rounds; round++) {
      const folder = mkdtempSync(join(scratch, 'kill-'))
      for (let kills = 1 + random(2); kills > 0 && !existsSync(join(folder, out)); kills--) {
        const ended = await run(commandIn(folder, 0), { folder, kill: 1 + random(changes) })
        // Threads share their work by chance, and a second command may have less to do.
        expect(ended.signal ?? ended.code, ended.stderr).toBeOneOf(['SIGKILL', 0])
        left += hiddenIn(folder).length
      }
      const wasThere = existsSync(join(folder, out))
      if (wasThere) expect(contentOf(folder, out)).toEqual(expected[0])
      const { code, stderr } = await run(commandIn(folder, 0), { folder })
      if (code !== 0) expect([wasThere, stderr]).toEqual([true, expect.stringContaining('exists already')])
      expect(contentOf(folder, out)).toEqual(expected[0])
      // A refused command may have looked at nothing: then the next one that writes removes what is left.
      if (code === 0) expect(hiddenIn(folder)).toEqual([])
    }
    expect(left).toBeGreaterThan(0)
  })

  it('is wholly one command’s when several write at once', async () => {
    for (let round = 0; round < rounds; round++) {
      const folder = mkdtempSync(join(scratch, 'rivals-'))
      const variants = Array.from({ length: 2 + random(3) }, (_, i) => (i % 2) as 0 | 1)
      const isSlow = random(2) === 0
      const results = await Promise.all(
        variants.map(async (variant) => {
          await new Promise((resolve) => setTimeout(resolve, random(2) * random(200)))
          return run(commandIn(folder, variant), { folder, isSlow })
        }),
      )
      for (const { code, stderr } of results) {
        if (code !== 0) expect(stderr).toMatch(/^error: .*(another process|exists already|not overwritten)/m)
        expect(stderr).not.toMatch(/^ {4}at /m)
      }
      if (existsSync(join(folder, out))) expect(expected).toContainEqual(contentOf(folder, out))
      else expect(results.every(({ code }) => code !== 0)).toBe(true)
      if (!existsSync(join(folder, out))) expect((await run(commandIn(folder, 0), { folder })).code).toBe(0)
      expect(hiddenIn(folder).filter((file) => !file.endsWith('.partial'))).toEqual([])
    }
  })
})
