// The bundled model and golden adapters as repositories of a Hub.

import { readdirSync, readFileSync } from 'node:fs'
import path from 'node:path'
import type { FakeHub } from './server.js'

const ROOT = path.join(import.meta.dirname, '../../../..')
export const MODEL = path.join(ROOT, 'models', 'union-3m')
export const golden = (name: string) => path.join(ROOT, 'tests', 'golden', 'peft', name)

/** Publishes a folder, with some files replaced. */
export function publish(hub: FakeHub, id: string, folder: string, changes: Record<string, Uint8Array> = {}): void {
  const entries = readdirSync(folder, { recursive: true, withFileTypes: true }).filter((entry) => entry.isFile())
  const files = Object.fromEntries(
    entries.map(({ parentPath, name }) => {
      const file = path.join(parentPath, name)
      return [path.relative(folder, file).split(path.sep).join('/'), readFileSync(file) as Uint8Array]
    }),
  )
  const all = { ...files, ...changes }
  const lfs = Object.keys(all).filter((name) => /\.(onnx.*|safetensors)$/.test(name))
  hub.repositories.set(id, { files: all, lfs })
}
