// Installs and loads transformers.js for scripts that compare lowrank with it. It goes into a folder outside the
// project, because few developers need it.

import { execFileSync } from 'node:child_process'
import { existsSync, mkdirSync } from 'node:fs'
import { createRequire } from 'node:module'
import { basename, dirname, join, resolve } from 'node:path'
import { fileURLToPath } from 'node:url'

export const PACKAGE = '@huggingface/transformers'
export const VERSION = '4.3.1'
const RUNTIME = 'onnxruntime-node'

/** The project's folder. */
export const ROOT = fileURLToPath(new URL('..', import.meta.url))

/** Installs transformers.js into `folder` unless it is there. Throws npm's message if it cannot be installed. */
export function installTransformers(folder) {
  if (existsSync(join(folder, 'node_modules', PACKAGE))) return
  mkdirSync(folder, { recursive: true })
  const options = ['--no-save', '--no-audit', '--no-fund', '--loglevel=error', '--prefix', folder]
  // The script of onnxruntime-node fetches CUDA libraries; the CPU library is in the package.
  const env = { ...process.env, ONNXRUNTIME_NODE_INSTALL: 'skip' }
  try {
    execFileSync('npm', ['install', ...options, `${PACKAGE}@${VERSION}`], { env, stdio: 'pipe', timeout: 300_000 })
  } catch (error) {
    throw new Error(String(error.stderr ?? error.message).trim() || error.message)
  }
}

/**
 * Loads transformers.js from `folder`, and lets it open only local folders.
 *
 * @returns the module, the ONNX Runtime that it uses (two copies in one process disturb each other), and the versions
 *   of both
 */
export function loadTransformers(folder) {
  const require = createRequire(join(resolve(folder), 'package.json'))
  const [transformers, ort] = [PACKAGE, RUNTIME].map((name) => require(name))
  transformers.env.allowRemoteModels = false
  const versions = { [PACKAGE]: transformers.env.version, [RUNTIME]: ort.env.versions.node }
  if (versions[PACKAGE] !== VERSION) throw new Error(`${folder} has ${PACKAGE} ${versions[PACKAGE]}, not ${VERSION}`)
  return { transformers, ort, versions }
}

/** Opens the pipeline of a task for a model folder, in float32. */
export function openPipeline(transformers, task, folder, options = {}) {
  transformers.env.localModelPath = dirname(resolve(folder))
  return transformers.pipeline(task, basename(folder), { dtype: 'fp32', ...options })
}
