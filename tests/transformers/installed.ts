// transformers.js for tests, outside of the project's own packages; undefined, with a line, where it cannot be had.

import { join } from 'node:path'
// @ts-expect-error A script without declarations.
import { installTransformers, loadTransformers, ROOT } from '../../scripts/transformers-js.mjs'

/** A pipeline of transformers.js, loosely. */
// biome-ignore lint/suspicious/noExplicitAny: the package's types are not installed here
type Loose = any

/** The folder that it is installed in. */
export const installedIn: string = process.env.LOWRANK_TRANSFORMERS ?? join(ROOT, 'out/transformers-js')

function install(): Loose {
  try {
    installTransformers(installedIn)
    return loadTransformers(installedIn)
  } catch (error) {
    console.log(`skipped: no transformers.js here: ${String(error).split('\n')[0]}`)
    return undefined
  }
}

const installed = install()
export const transformers: Loose = installed?.transformers
/** The ONNX Runtime that it uses. */
export const ort: Loose = installed?.ort
