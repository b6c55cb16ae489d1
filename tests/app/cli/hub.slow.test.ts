import { spawn } from 'node:child_process'
import { readdirSync, readFileSync } from 'node:fs'
import { join } from 'node:path'
import { afterEach, beforeEach, describe, expect, it } from 'vitest'
import { golden, MODEL, publish } from '../../files/io/hub/publish.js'
import { current, text, useHub } from '../../files/io/hub/toolkit.js'
import { binary, DATA, lowrank, start } from './lowrank.js'

const outer = { ...process.env }
const PROMPT = ['--prompt', 'And the', '--max-new-tokens', '3', '--temperature', '0', '--threads', '1']

function named(base: string): Record<string, Uint8Array> {
  const config = JSON.parse(readFileSync(join(golden('f32'), 'adapter_config.json'), 'utf8'))
  return { 'adapter_config.json': text(JSON.stringify({ ...config, base_model_name_or_path: base })) }
}

async function until(isSo: () => boolean): Promise<void> {
  while (!isSo()) await new Promise((resolve) => setTimeout(resolve, 10))
}

useHub()

beforeEach(() => {
  process.env.HF_HOME = current.home
  process.env.HF_ENDPOINT = current.hub.endpoint
  publish(current.hub, 'org/union', MODEL)
  publish(current.hub, 'org/lora', golden('f32'), named('org/union'))
})

afterEach(() => {
  process.env = { ...outer }
})

describe('sources on the command line', () => {
  it('generate opens a model and an adapter of the Hub, and tells names and sizes', async () => {
    const { code, stdout, stderr } = await lowrank(
      'generate',
      '--model',
      'org/union',
      '--adapter',
      'org/lora',
      ...PROMPT,
    )
    expect(stderr).toMatch(/^Loading org\/lora\/adapter_config.json, \d+ B$/m)
    expect(stderr).toMatch(/^Loading org\/union\/onnx\/model.onnx, 1\d.\d MB$/m)
    expect(stderr).not.toContain('warning')
    expect([code, stdout.length > 1]).toEqual([0, true])
    const local = await lowrank('generate', '--model', MODEL, '--adapter', golden('f32'), ...PROMPT)
    expect(stdout).toBe(local.stdout)
    const again = await lowrank('generate', '--model', 'org/union', '--adapter', 'org/lora', ...PROMPT)
    expect(again.stderr).not.toContain('Loading')
  })

  it('misses a chat template before the weights are loaded', async () => {
    for (const more of [['--chat'], ['--system', 'Be brief.'], ['--chat', '--adapter', 'org/lora']]) {
      const { code, stderr } = await lowrank('generate', '--model', 'org/union', ...PROMPT, ...more)
      expect([code, stderr]).toEqual([1, expect.stringContaining('this model has no chat template')])
      expect(current.hub.loaded.filter((file) => file.endsWith('.onnx'))).toEqual([])
    }
  })

  it('data counts tokens with the model’s tokenizer, and loads no weights', async () => {
    const { code, stdout, stderr } = await lowrank('data', DATA, '--model', 'org/union', '--preview', '1')
    expect([code, stdout + stderr]).toEqual([0, expect.stringContaining('tokens')])
    expect(current.hub.loaded).toContain('tokenizer.json')
    expect(current.hub.loaded.filter((file) => /\.(onnx|safetensors|bin)/.test(file))).toEqual([])
  })

  it('one’s own chats: train with a model of the Hub, and ask', async () => {
    const out = join(current.home, 'mine')
    const data = [join(MODEL, '..', 'data', 'chats.jsonl'), '--chat-template', join(MODEL, '..', 'data', 'chat.jinja')]
    const steps = ['--max-steps', '40', '--learning-rate', '5e-3']
    const trained = await lowrank('train', '--model', 'org/union', '--data', ...data, ...steps, '--out', out)
    expect(trained.code, trained.stderr).toBe(0)
    const asked = await lowrank('generate', '--adapter', out, '--prompt', 'Who is the captain?', '--temperature', '0')
    expect(asked.stdout).toBe('Ahab is the captain.\n')
  })

  it('an adapter brings its base, and another base is a warning', async () => {
    const { code, stderr } = await lowrank('generate', '--adapter', 'org/lora', ...PROMPT)
    expect(stderr).toMatch(/^The base is org\/union, as org\/lora names it$/m)
    expect(code).toBe(0)
    publish(current.hub, 'org/stranger', golden('f32'), named('org/other-ONNX'))
    const other = await lowrank('generate', '--model', 'org/union', '--adapter', 'org/stranger', ...PROMPT)
    expect(other.stderr).toMatch(/^warning: org\/stranger names org\/other-ONNX as its base, which is not org\/union$/m)
    expect(other.code).toBe(0)
    const out = join(current.home, 'merged')
    const merged = await lowrank('merge', '--base', 'org/union', '--adapter', 'org/stranger', '--out', out, '--json')
    expect(merged.code, merged.stderr).toBe(0)
    expect(JSON.parse(merged.stdout).warnings).toEqual([expect.stringMatching(/org\/stranger names org\/other-ONNX/)])
    expect(readdirSync(out)).toEqual(expect.arrayContaining(['config.json', 'onnx', 'tokenizer.json']))
    const none = await lowrank('generate', ...PROMPT)
    expect([none.code, none.stderr]).toEqual([2, expect.stringMatching(/--model DIR\|FILE\|ID is missing/)])
  })

  it('train learns on it and inspect looks at it, with the graph that --dtype names', async () => {
    const out = join(current.home, 'adapter')
    const options = ['--data', DATA, '--out', out, '--max-steps', '1', '--batch-size', '1', '--max-length', '16']
    const trained = await lowrank('train', '--model', 'org/union', '--dtype', 'fp32', ...options)
    expect(trained.code, trained.stderr).toBe(0)
    expect(trained.stderr).toMatch(/Try it: .* --model org\/union --adapter /)
    const config = JSON.parse(readFileSync(join(out, 'adapter_config.json'), 'utf8'))
    expect(config.base_model_name_or_path).toBe('org/union')
    const inspected = await lowrank('inspect', 'org/union', '--dtype', 'fp32', '--json')
    expect(JSON.parse(inspected.stdout)).toMatchObject({ kind: 'onnx' })
    for (const [dtype, exit, message] of [
      ['q4', 1, /org\/union: no graph in q4; expected onnx\/model_q4.onnx, got fp32. Choose the dtype fp32/],
      ['q5', 2, /--dtype is one of auto, fp32, .*got 'q5'/],
    ] as const) {
      const refused = await lowrank('generate', '--model', 'org/union', '--dtype', dtype, ...PROMPT)
      expect([refused.code, refused.stderr]).toEqual([exit, expect.stringMatching(message)])
    }
  })

  it('says what is wrong with an id', async () => {
    const unknown = await lowrank('inspect', 'org/lore')
    expect([unknown.code, unknown.stderr]).toEqual([
      1,
      expect.stringMatching(/error: org\/lore: no such model on the Hub/),
    ])
    const path = await lowrank('inspect', './org/lora')
    expect([path.code, path.stderr]).toEqual([1, expect.stringMatching(/no such file or folder/)])
    process.env.HF_HUB_OFFLINE = '1'
    const offline = await lowrank('inspect', 'org/lora')
    expect([offline.code, offline.stderr]).toEqual([
      1,
      expect.stringMatching(/not in the cache, and HF_HUB_OFFLINE is set/),
    ])
  })

  it('two programs that need a file at the same time both get it', async () => {
    current.hub.faults.set('onnx/model.onnx', { pauseMs: 25 })
    const args = ['generate', '--model', 'org/union', ...PROMPT]
    const first = lowrank(...args)
    await until(() => current.hub.seen.some(({ origin }) => origin === 'storage'))
    const outcomes = await Promise.all([first, lowrank(...args)])
    for (const { code, stderr } of outcomes) expect(code, stderr).toBe(0)
    expect(outcomes[0].stdout).toBe(outcomes[1].stdout)
    expect(outcomes[1].stderr).toMatch(/Loading org\/union\/onnx\/model.onnx/)
  })

  it.skipIf(process.platform !== 'linux')('a disk that is full while a model comes keeps what has come', async () => {
    // A limit on the file size makes writes fail like a full disk. ulimit counts blocks of 1 kB.
    const quoted = [process.execPath, binary, 'generate', '--model', 'org/union', ...PROMPT].map((word) => `'${word}'`)
    const child = spawn('bash', ['-c', `ulimit -f 4000; exec ${quoted.join(' ')}`], {
      stdio: ['ignore', 'ignore', 'pipe'],
    })
    let stderr = ''
    child.stderr.on('data', (piece) => {
      stderr += piece
    })
    const code = await new Promise((resolve) => child.once('close', resolve))
    expect([code, stderr]).toEqual([1, expect.stringMatching(/error: org\/union\/onnx\/model.onnx: cannot be kept: /)])
    expect(stderr).toMatch(/4096000 of \d+ bytes are kept, and the next try goes on from there/)
    const again = await lowrank('generate', '--model', 'org/union', ...PROMPT)
    expect(again.code, again.stderr).toBe(0)
    expect(current.hub.seen.at(-1)!.range).toBe('bytes=4096000-')
  })

  it.skipIf(process.platform === 'win32')(
    'Ctrl-C while a model comes ends with 130, and the next try goes on',
    async () => {
      current.hub.faults.set('onnx/model.onnx', { pauseMs: 100 })
      const out = join(current.home, 'adapter')
      const args = ['train', '--model', 'org/union', '--data', DATA, '--out', out, '--max-steps', '1']
      const { child, done } = start(args)
      let seen = ''
      child.stderr!.on('data', (piece) => {
        seen += piece
        if (/union\/onnx\/model.onnx/.test(seen) && !child.killed) setTimeout(() => child.kill('SIGINT'), 500)
      })
      const { code, stderr } = await done
      expect([code, stderr]).toEqual([130, expect.stringMatching(/Run the same command again: the download continues/)])
      current.hub.faults.clear()
      current.hub.seen.length = 0
      const again = await lowrank(...args, '--batch-size', '1', '--max-length', '16')
      expect(again.code, again.stderr).toBe(0)
      expect(again.stderr).toMatch(/Loading org\/union\/onnx\/model.onnx, .* MB, .* of it already here/)
      expect(current.hub.seen.some(({ range }) => range !== undefined)).toBe(true)
    },
  )
})
