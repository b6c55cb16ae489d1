// An edit of what a worker thread runs turns a test red, in a copy of the project that was never built.

import { spawnSync } from 'node:child_process'
import { cpSync, mkdtempSync, readdirSync, readFileSync, rmSync, symlinkSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { basename, join } from 'node:path'
import { fileURLToPath } from 'node:url'
import { expect, it, onTestFinished } from 'vitest'
import { entries } from './from-src.js'

const root = fileURLToPath(new URL('..', import.meta.url))
const COPIED = ['src', 'tests', 'scripts', 'package.json', 'package-lock.json', 'tsconfig.json', 'vitest.config.ts']
const LINKED = ['node_modules', 'tests/golden']

it('takes the types of the package from the same files', () => {
  const { paths } = JSON.parse(readFileSync(join(root, 'tsconfig.json'), 'utf8')).compilerOptions
  const sources = Object.values<string[]>(paths).map(([path]) => join(root, path))
  expect(sources).toEqual(entries.map(({ replacement }) => replacement))
  for (const [i, name] of Object.keys(paths).entries()) expect(name).toMatch(entries[i].find)
})

it('notices an edit of a worker without a build', () => {
  const copy = mkdtempSync(join(tmpdir(), 'lowrank-edited-'))
  onTestFinished(() => rmSync(copy, { recursive: true, force: true }))
  const filter = (path: string) => !LINKED.some((linked) => path === join(root, linked))
  for (const name of COPIED) cpSync(join(root, name), join(copy, name), { recursive: true, filter })
  for (const name of LINKED) symlinkSync(join(root, name), join(copy, name))
  const find = (name: string) =>
    join(copy, readdirSync(copy, { recursive: true, encoding: 'utf8' }).find((path) => basename(path) === name)!)

  const worker = find('reward-worker.ts')
  const text = readFileSync(worker, 'utf8')
  const edited = text.replace('(weights[name] ?? 1)', '(weights[name] ?? 1) + 1')
  expect(edited).not.toBe(text)
  writeFileSync(worker, edited)

  const program = join(root, 'node_modules/vitest/vitest.mjs')
  const args = ['run', find('rewards.test.ts'), '-t', 'is read by a program', '--reporter=tap-flat']
  const { status, stdout } = spawnSync(process.execPath, [program, ...args], { cwd: copy, encoding: 'utf8' })
  expect([status, stdout]).toEqual([1, expect.stringMatching(/expected 'length 4.*' to be 'length 3/)])
})
