// Kills a process that takes over the folder of an earlier server, at random moments. Whatever it had done, the next
// start makes the same rows.

import { spawn } from 'node:child_process'
import { once } from 'node:events'
import { cpSync, existsSync, mkdirSync, mkdtempSync, readdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { exportStore } from 'lowrank/server'
import { expect, it } from 'vitest'

const OPEN = new URL('../../../src/serve/store/node/open.js', import.meta.url).href
const PROGRAM = `
  const { openStore } = await import(${JSON.stringify(OPEN)})
  const store = await openStore(process.argv[1], (error) => {
    console.error(error)
    process.exitCode = 3
  })
  await store.close()
`
const CHATS = 200
/** Each takes seconds: `KILLS=50` tries more than the usual run has time for. */
const KILLS = Number(process.env.KILLS ?? 12)

function writeEarlier(folder: string): void {
  for (let i = 0; i < CHATS; i++) {
    const id = `chatcmpl-${i}`
    const answer = { id, model: 'm', choices: [{ message: { role: 'assistant', content: `Hi ${i}` } }] }
    const chat = {
      id,
      owner: `o${i % 3}`,
      created_at: i,
      messages: [{ role: 'user', content: 'A' }],
      metadata: {},
      answer,
    }
    mkdirSync(join(folder, 'completions', id), { recursive: true })
    writeFileSync(join(folder, 'completions', id, 'record.json'), JSON.stringify(chat))
  }
  for (let i = 0; i < 20; i++) {
    const id = `file-${String(i).padStart(24, '0')}`
    const file = { id, owner: 'o', created_at: i, bytes: 3, filename: 'x', purpose: 'fine-tune' }
    mkdirSync(join(folder, 'files', id), { recursive: true })
    writeFileSync(join(folder, 'files', id, 'content.jsonl'), '{}\n')
    writeFileSync(join(folder, 'files', id, 'record.json'), JSON.stringify(file))
  }
  writeFileSync(join(folder, 'aliases.json'), JSON.stringify([{ name: 'best', model: 'm', created: 1 }]))
  writeFileSync(join(folder, 'lowrank-server.json'), '{}')
}

it('a folder of an earlier server is the same after kills while it is taken over', async () => {
  const scratch = mkdtempSync(join(tmpdir(), 'lowrank-taken-'))
  const earlier = join(scratch, 'earlier')
  writeEarlier(earlier)
  const start = (folder: string) =>
    spawn(process.execPath, ['--input-type=module', '-e', PROGRAM, folder], { stdio: 'inherit', env: {} })
  const rowsOf = async (folder: string) => {
    await exportStore(folder, `${folder}-rows`)
    return readdirSync(`${folder}-rows`).map((name) => readFileSync(join(`${folder}-rows`, name), 'utf8'))
  }
  const whole = join(scratch, 'whole')
  cpSync(earlier, whole, { recursive: true })
  const begun = performance.now()
  expect(await once(start(whole), 'exit')).toEqual([0, null])
  const longest = performance.now() - begun
  const expected = await rowsOf(whole)
  expect(expected.join('').trim().split('\n')).toHaveLength(CHATS + 20 + 1)
  let killed = 0
  for (let round = 0; killed < KILLS; round++) {
    const folder = join(scratch, `${round}`)
    cpSync(earlier, folder, { recursive: true })
    for (let isDone = false; !isDone; ) {
      const process = start(folder)
      const timer = setTimeout(() => process.kill('SIGKILL'), longest * (0.2 + Math.random()))
      const [code, signal] = await once(process, 'exit')
      clearTimeout(timer)
      expect([0, null]).toContain(code)
      if (signal === 'SIGKILL') killed++
      isDone = code === 0
    }
    expect(await rowsOf(folder)).toEqual(expected)
    expect(existsSync(join(folder, 'aliases.json'))).toBe(false)
    for (const id of readdirSync(join(folder, 'files')))
      expect(readdirSync(join(folder, 'files', id))).toEqual(['content.jsonl'])
    expect(readdirSync(join(folder, 'completions'))).toEqual(['now-in-the-database'])
    expect(readdirSync(join(folder, 'before-database', 'completions'))).toHaveLength(CHATS)
    rmSync(folder, { recursive: true })
  }
  rmSync(scratch, { recursive: true })
}, 600_000)
