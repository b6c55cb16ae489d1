// transformers.js for tests, installed outside the project. If it cannot be installed, it is undefined, and a line says
// why.

import { join } from 'node:path'
// @ts-expect-error A script without declarations.
import { installTransformers, loadTransformers, ROOT } from '../../../scripts/transformers-js.mjs'

/** Values of transformers.js, whose types are not installed. */
// biome-ignore lint/suspicious/noExplicitAny: the package's types are not installed here
type Loose = any

/** The folder with transformers.js. */
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
/** The ONNX Runtime that transformers.js uses. */
export const ort: Loose = installed?.ort
