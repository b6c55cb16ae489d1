// Loaded before every program and thread of the tests. Sessions get a single thread by default: several test files run
// at a time, and ONNX Runtime's threads spin while they wait for work.
//
// `npm test` opens equal graphs only once, because opening often takes longer than a test's run. `npm run test:slow`
// opens them each time.

import { createHash } from 'node:crypto'
import { createRequire } from 'node:module'
import { fileURLToPath } from 'node:url'

const require = createRequire(import.meta.url)
const { InferenceSession } = require('onnxruntime-common')
const { create } = InferenceSession

/** Folders whose files no test changes. */
const FIXED = ['golden/', '../models/'].map((folder) => fileURLToPath(new URL(folder, import.meta.url)))
const MOST_KEPT = 16
/** True in the tests themselves. In programs that they start, engines treat denormal numbers as they do for users. */
const IS_TEST = process.argv[1]?.includes('vitest')

/** Key → a handler, and the number of sessions that use it. The last used is at the end. */
const known = new Map()

// The module's only way to open a session: (model, options), (buffer, offset, length, options).
InferenceSession.create = async (...args) => {
  const given = typeof args.at(-1) === 'object' && args.length > 1 ? args.pop() : {}
  const options = { intraOpNumThreads: 1, ...given }
  // Engines of some tests share a thread with tests that need denormal numbers.
  if (IS_TEST) delete options.extra?.session?.set_denormal_as_zero
  const key = process.env.THOROUGH === undefined && args.length === 1 ? keyOf(args[0], options) : undefined
  if (key === undefined) return create(...args, options)
  const entry = known.get(key) ?? { handler: (await create(...args, options)).handler, users: 0 }
  known.delete(key)
  known.set(key, entry)
  const session = new InferenceSession(borrowed(entry))
  for (const [old, { handler, users }] of known) {
    if (known.size <= MOST_KEPT) break
    if (users > 0) continue
    known.delete(old)
    await handler.dispose()
  }
  return session
}

/** Returns the same key for equal sessions, or undefined if it is not known whether they are equal. */
function keyOf(model, { externalData = [], ...options }) {
  const folder = options.extra?.session?.model_external_initializers_file_folder_path
  const isFixed = folder === undefined || FIXED.some((start) => `${folder}/`.startsWith(start))
  const isPlain = [options.executionProviders ?? ['cpu']].flat().every((provider) => provider === 'cpu')
  if (!(model instanceof Uint8Array) || !isFixed || !isPlain || options.enableProfiling) return undefined
  const hash = createHash('sha1').update(JSON.stringify(options)).update(model)
  for (const { path, data } of externalData) {
    if (!(data instanceof Uint8Array)) return undefined
    hash.update(`${path}:${data.length}:`).update(data)
  }
  return hash.digest('base64')
}

/** Makes a handler whose release only ends its session. */
function borrowed(entry) {
  entry.users++
  let isOpen = true
  return {
    ...entry.handler,
    run(...args) {
      if (!isOpen) throw new Error('the session is released')
      return entry.handler.run(...args)
    },
    async dispose() {
      if (isOpen) entry.users--
      isOpen = false
    },
  }
}
