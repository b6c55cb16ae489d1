// Disturbs commands that write results of every kind: kills them at random changes to the file system, lets several
// write to the same place with slow renames, and tries existing results, a full disk, and devices. Each result must
// come whole from one command, with no files left beside it. WHOLE_ROUNDS=20 makes more rounds, and WHOLE_SEED=n
// different ones.

import { execFileSync, spawn } from 'node:child_process'
import {
  cpSync,
  existsSync,
  lstatSync,
  mkdirSync,
  mkdtempSync,
  readdirSync,
  readFileSync,
  rmSync,
  statSync,
  writeFileSync,
} from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { afterAll, beforeAll, describe, expect, it } from 'vitest'
import { binary, root } from './lowrank.js'

const golden = (path: string) => join(root, 'tests/golden', path)
const LLAMA = golden('merge/llama')
const GRAPH = golden('models/llama-genai')
const PEFT = golden('peft/f32')

const rounds = Number(process.env.WHOLE_ROUNDS ?? 1)
const seed = Number(process.env.WHOLE_SEED ?? 1)

interface Kind {
  /** The name of the result. */
  readonly out: string
  /** The command for each of two variants, which give different bytes. */
  readonly args: (variant: 0 | 1) => string[]
  /** True if the command has --overwrite. */
  readonly replaces?: boolean
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
  'a merged folder': { out: 'out', args: (variant) => [...merge(variant), '--max-shard-size', '20KB'], replaces: true },
  'a merged file': { out: 'out.safetensors', args: merge, replaces: true },
  'a merged graph with its data file': {
    out: 'out.onnx',
    replaces: true,
    args: (variant) => [
      ...['merge', '--base', join(GRAPH, 'onnx/model.onnx'), '--adapter', join(GRAPH, 'golden/adapter-init')],
      ...['--weight', variant === 0 ? '1' : '0.5'],
    ],
  },
  'an unmerged folder': {
    out: 'out',
    replaces: true,
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
  'a handed-off run': {
    out: 'out',
    args: (variant) => ['handoff', join(scratch, `run ${variant}.json`), '--to', 'trl', '--rows', 'records'],
  },
}

let scratch: string
beforeAll(() => {
  scratch = mkdtempSync(join(tmpdir(), 'whole-results-'))
  const run = { model: golden('models/llama-optimum'), data: join(root, 'models/data/whaling.eval.jsonl'), maxSteps: 2 }
  for (const rank of [2, 3])
    writeFileSync(join(scratch, `run ${rank - 2}.json`), JSON.stringify({ ...run, config: { rank } }))
})
afterAll(() => rmSync(scratch, { recursive: true, force: true }))

interface Ended {
  readonly code: number | null
  readonly signal: string | null
  readonly stderr: string
}

interface Disturbance {
  readonly folder: string
  /** The process is killed before this change in the folder. 0 counts the changes. */
  readonly kill?: number
  readonly isSlow?: boolean
  /** Another result, and the name to which it is copied just before the process gives its own result this name. */
  readonly rival?: readonly [result: string, name: string]
  /** The disk is full from this call in the folder on. */
  readonly full?: number
}

function run(args: string[], { folder, kill, isSlow = false, rival, full }: Disturbance) {
  const preload = (name: string) => ['--import', new URL(name, import.meta.url).href]
  const loaded = [
    ...(isSlow ? preload('../../../scripts/stress/slow-calls.mjs') : []),
    ...(kill === undefined ? [] : preload('../../../scripts/stress/kill-call.mjs')),
    ...(full === undefined ? [] : preload('../../../scripts/stress/fail-call.mjs')),
    ...(rival === undefined ? [] : preload('../../rival.mjs')),
  ]
  const disturbed = { KILL_CALL: `${kill} ${folder}`, FAIL_CALL: `ENOSPC ${full} ${folder}`, RIVAL: rival?.join('\n') }
  const env = { ...process.env, ...disturbed }
  const child = spawn(process.execPath, [...loaded, binary, ...args], { env })
  let stderr = ''
  child.stderr.on('data', (text) => {
    stderr += text
  })
  return new Promise<Ended>((resolve) => {
    child.on('close', (code, signal) => resolve({ code, signal, stderr }))
  })
}

/** Reads all files of a result, by name. */
function contentOf(folder: string, out: string): Map<string, string> {
  const isFolder = !out.includes('.')
  const from = isFolder ? join(folder, out) : folder
  const names = readdirSync(from, { recursive: true, encoding: 'utf8' })
  const files = names.filter((name) => statSync(join(from, name)).isFile())
  const own = files.filter((name) => isFolder || name.startsWith(out))
  return new Map(own.sort().map((name) => [name, readFileSync(join(from, name), 'base64')]))
}

const hiddenIn = (folder: string) => readdirSync(folder).filter((name) => name.startsWith('.'))

/** Random numbers that depend only on the seed. */
function randomFrom(start: number) {
  let state = start * 2654435761 + 12345
  return (below: number) => {
    state = (Math.imul(state, 1664525) + 1013904223) >>> 0
    return Math.floor((state / 2 ** 32) * below)
  }
}

describe.each(Object.entries(KINDS))('%s', (name, { out, args, replaces }) => {
  const random = randomFrom(seed + Object.keys(KINDS).indexOf(name) * 100)
  const commandIn = (folder: string, variant: 0 | 1) => [...args(variant), '--out', join(folder, out)]
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
        // Threads divide the work by chance, so a second command may make fewer changes and reach its end.
        expect(ended.signal ?? ended.code, ended.stderr).toBeOneOf(['SIGKILL', 0])
        left += hiddenIn(folder).length
      }
      const wasThere = existsSync(join(folder, out))
      if (wasThere) expect(contentOf(folder, out)).toEqual(expected[0])
      const { code, stderr } = await run(commandIn(folder, 0), { folder })
      if (code !== 0) expect([wasThere, stderr]).toEqual([true, expect.stringContaining('exists already')])
      expect(contentOf(folder, out)).toEqual(expected[0])
      // A command that is refused early removes no leftovers. The next command that writes does.
      if (code === 0) expect(hiddenIn(folder)).toEqual([])
    }
    if (rounds > 2) expect(left).toBeGreaterThan(0)
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
        if (code !== 0) expect(stderr).toMatch(/^error: .*(another process|exists already|this process did not write)/m)
        expect(stderr).not.toMatch(/^ {4}at /m)
      }
      expect(results.filter(({ code }) => code === 0)).toHaveLength(1)
      const winner = variants[results.findIndex(({ code }) => code === 0)]
      expect(contentOf(folder, out)).toEqual(expected[winner])
      expect(hiddenIn(folder)).toEqual([])
    }
  })

  it('does not replace what was there, or was published meanwhile, unless that is wished', async () => {
    const folder = mkdtempSync(join(scratch, 'there-'))
    const place = join(folder, out)
    const earlier = join(scratch, `${name} 1`)
    const rival = [join(earlier, out), place] as const
    for (const isThere of [true, false]) {
      rmSync(folder, { recursive: true })
      mkdirSync(folder)
      if (isThere) cpSync(earlier, folder, { recursive: true })
      const { code, stderr } = await run(commandIn(folder, 0), { folder, ...(!isThere && { rival }) })
      expect([code, stderr]).toEqual([
        1,
        expect.stringMatching(
          isThere
            ? /^error: .*(exists already|this process did not write)/m
            : /^error: .*another process has written it/m,
        ),
      ])
      if (isThere || !name.includes('graph with its data')) expect(contentOf(folder, out)).toEqual(expected[1])
      expect(hiddenIn(folder)).toEqual([])
      if (!replaces) continue
      rmSync(folder, { recursive: true })
      mkdirSync(folder)
      if (isThere) cpSync(earlier, folder, { recursive: true })
      const command = [...commandIn(folder, 0), '--overwrite']
      expect((await run(command, { folder, ...(!isThere && { rival }) })).code).toBe(0)
      if (isThere && name.includes('graph with its data')) {
        // The old graph needed its data until the end, so the data of the new graph has another name.
        const data = contentOf(folder, out)
        expect([...data.keys()]).toEqual([out, `${out}.1.data`])
        expect(data.get(`${out}.1.data`)).toBe(expected[0].get(`${out}.data`))
      } else expect(contentOf(folder, out)).toEqual(expected[0])
      expect(hiddenIn(folder)).toEqual([])
    }
  })

  it('is not there when the disk fills up', async () => {
    for (let round = 0; round < rounds; round++) {
      const folder = mkdtempSync(join(scratch, 'full-'))
      const { code, stderr } = await run(commandIn(folder, 0), { folder, full: 1 + random(changes) })
      if (code === 0) expect(contentOf(folder, out)).toEqual(expected[0])
      else expect([code, stderr]).toEqual([1, expect.stringMatching(/^error: .*no space left on the device/m)])
      if (code !== 0 && existsSync(join(folder, out))) expect(contentOf(folder, out)).toEqual(expected[0])
      expect(hiddenIn(folder)).toEqual([])
    }
  })

  it.skipIf(process.platform !== 'linux' || process.getuid?.() !== 0)('never replaces a device or a pipe', async () => {
    const folder = mkdtempSync(join(scratch, 'device-'))
    const place = join(folder, out)
    for (const [kind, isKept] of [
      ['c 1 3', () => lstatSync(place).isCharacterDevice()],
      ['p', () => lstatSync(place).isFIFO()],
    ] as const) {
      execFileSync('mknod', [place, ...kind.split(' ')])
      // Something reads from the pipe.
      const reader = spawn('cat', [place], { stdio: 'ignore' })
      for (const more of replaces ? [[], ['--overwrite']] : [[]]) {
        const { code, stderr } = await run([...commandIn(folder, 0), ...more], { folder })
        if (code !== 0) expect([code, stderr]).toEqual([1, expect.stringMatching(/^error: /m)])
        expect(isKept()).toBe(true)
        if (code === 0 && kind === 'p') break
      }
      reader.kill()
      rmSync(place)
    }
    expect(hiddenIn(folder)).toEqual([])
  })
})
