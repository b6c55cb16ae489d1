// Runs the program as a user does.

import { type ChildProcess, spawn } from 'node:child_process'
import { mkdtempSync, rmSync } from 'node:fs'
import { constants, tmpdir } from 'node:os'
import { dirname, join } from 'node:path'
import { fileURLToPath } from 'node:url'
import { afterAll } from 'vitest'

export const root = join(dirname(fileURLToPath(import.meta.url)), '../../..')
export const binary = fileURLToPath(new URL('../../../src/app/cli/main.js', import.meta.url))

export const MODEL = join(root, 'models', 'union-3m')
export const ONNX = join(MODEL, 'onnx', 'model.onnx')
export const DATA = join(root, 'models', 'data', 'scripture.eval.jsonl')

export interface Outcome {
  code: number
  stdout: string
  stderr: string
}

/** Starts `lowrank`; `done` waits for its end. */
/** @param isSlow true to slow down its writes to files */
export function start(args: readonly string[], isSlow = false): { child: ChildProcess; done: Promise<Outcome> } {
  const own = isSlow ? ['--import', new URL('../../slow-writes.mjs', import.meta.url).href] : []
  const child = spawn(process.execPath, [...own, binary, ...args], { cwd: root, stdio: ['ignore', 'pipe', 'pipe'] })
  let stdout = ''
  let stderr = ''
  child.stdout.setEncoding('utf8').on('data', (text) => {
    stdout += text
  })
  child.stderr.setEncoding('utf8').on('data', (text) => {
    stderr += text
  })
  const done = new Promise<Outcome>((resolve, reject) => {
    child.on('error', reject)
    // Shells report a signal as 128 plus its number.
    child.on('close', (code, signal) => resolve({ code: code ?? 128 + constants.signals[signal!], stdout, stderr }))
  })
  return { child, done }
}

export function lowrank(...args: readonly string[]): Promise<Outcome> {
  return start(args).done
}

/** Options of a run that takes about a second. */
export const QUICK = ['--model', MODEL, '--data', DATA, '--max-steps', '3', '--batch-size', '2', '--max-length', '32']

/** A folder for one test file's outputs, removed after it. */
export function scratchFolder(): string {
  const folder = mkdtempSync(join(tmpdir(), 'lowrank-cli-'))
  afterAll(() => rmSync(folder, { recursive: true, force: true }))
  return folder
}
