// Merges of .onnx models into paths give the same bytes as merges from folder to folder, and can replace other results.

import { mkdtemp, rm } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import path from 'node:path'
import { afterEach, beforeEach, expect, it } from 'vitest'
import { MemoryDirectory, merge, planMerge } from '../../../src/api/node.js'
import { merge as mergeFolders } from '../../../src/merge/merge.js'
import { graphsFolder } from '../../several-graphs.js'
import { digest, fromDisk, partialsOf, weights } from './disk.js'

const BASE = graphsFolder('t5')
const ADAPTER = path.join(BASE, 'golden', 'adapter')
const GRAPHS = ['onnx/decoder_model_merged.onnx', 'onnx/encoder_model.onnx']
const here = { base: BASE, adapters: ADAPTER, format: 'onnx', threads: 1 } as const

let folder: string
let out: string
beforeEach(async () => {
  folder = await mkdtemp(path.join(tmpdir(), 'lowrank-onnx-'))
  out = path.join(folder, 'out')
})
afterEach(() => rm(folder, { recursive: true, force: true }))

/** Returns the digests of the files that `mergeFolders` writes for the same merge, from one Directory to another. */
async function expected(): Promise<Map<string, string>> {
  const into = new MemoryDirectory({}, 'out')
  const [directory, adapters] = [await fromDisk(BASE), await fromDisk(ADAPTER)]
  await mergeFolders({ base: { directory }, adapters, format: 'onnx', out: into })
  return new Map([...into.files].map(([name, bytes]): [string, string] => [name, digest(bytes)]).sort())
}

it('gives the bytes of a merge from folder to folder', async () => {
  const report = await merge({ ...here, out })
  const planned = await planMerge({ ...here, out: path.join(folder, 'plan') })
  expect(report.layers.map(({ name }) => name)).toEqual(planned.layers.map(({ name }) => name))
  expect(report.layers.every(({ relativeChange }) => relativeChange !== null)).toBe(true)
  expect(await weights(out)).toEqual(await expected())
  expect(await partialsOf(out)).toEqual([])
})

it('the plan computes nothing, and knows every size', async () => {
  const plan = await planMerge({ ...here, out })
  const report = await merge({ ...here, out })
  expect(plan.files.map(({ name }) => name).sort()).toEqual([...GRAPHS].sort())
  const { files } = await fromDisk(out)
  for (const { name, byteLength } of plan.files) expect(files.get(name)!.byteLength).toBe(byteLength)
  expect(plan).toMatchObject({ tensors: report.tensors, changed: report.changed, copied: report.copied })
})
