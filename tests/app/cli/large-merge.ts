// A merge that takes long enough to be watched and stopped.

import { createHash } from 'node:crypto'
import { existsSync, mkdirSync, readdirSync, readFileSync, writeFileSync } from 'node:fs'
import { basename, dirname, join } from 'node:path'
import { LoraAdapter } from '../../../src/api/index.js'
import { saveAdapter } from '../../../src/api/node.js'

export const LAYERS = 16
export const [d, k] = [2048, 2048]

/** Lists the hidden files beside an output. */
export function hiddenBeside(out: string): string[] {
  const names = existsSync(dirname(out)) ? readdirSync(dirname(out)) : []
  return names.filter((name) => name.startsWith(`.${basename(out)}.`)).map((name) => join(dirname(out), name))
}

/** Makes a checkpoint of 16 files of 8 MB of zeros, and an adapter for it. */
export async function large(scratch: string): Promise<{ base: string; adapter: string }> {
  const [base, folder] = [join(scratch, 'large'), join(scratch, 'large-adapter')]
  if (existsSync(base)) return { base, adapter: folder }
  mkdirSync(base)
  const weight_map: Record<string, string> = {}
  const adapter = new LoraAdapter({ rank: 64, alpha: 64, targetModules: ['q_proj'] })
  for (let i = 0; i < LAYERS; i++) {
    const file = `model-000${String(i + 1).padStart(2, '0')}-of-000${LAYERS}.safetensors`
    const name = `model.layers.${i}.q_proj`
    weight_map[`${name}.weight`] = file
    const info = { dtype: 'BF16', shape: [d, k], data_offsets: [0, 2 * d * k] }
    const header = Buffer.from(JSON.stringify({ [`${name}.weight`]: info }))
    const bytes = Buffer.alloc(8 + header.length + 2 * d * k)
    bytes.writeBigUInt64LE(BigInt(header.length))
    bytes.set(header, 8)
    writeFileSync(join(base, file), bytes)
    const ones = (rows: number, columns: number) => {
      return { data: new Float32Array(rows * columns).fill(1), shape: [rows, columns] as const }
    }
    adapter.addFactors(name, ones(64, k), ones(d, 64))
  }
  writeFileSync(join(base, 'model.safetensors.index.json'), JSON.stringify({ metadata: {}, weight_map }))
  await saveAdapter(adapter, folder)
  return { base, adapter: folder }
}

/** The digest of all files in a folder. */
export function digest(folder: string): string {
  const hash = createHash('sha256')
  for (const name of readdirSync(folder).sort()) hash.update(name).update(readFileSync(join(folder, name)))
  return hash.digest('hex')
}
