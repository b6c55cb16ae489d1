// Adapter folders: an adapter loads if and only if `inspect` reports no problems, and a saved adapter can be loaded and
// saved again as the same bytes.

import { MemoryDirectory } from '../../../dist/core/base/bytes.js'
import { LowrankError } from '../../../dist/core/base/errors.js'
import { fullMatch } from '../../../dist/lora/patterns/patterns.js'
import { loadAdapter, saveAdapter } from '../../../dist/lora/peft/adapter-folder.js'
import { parsePeftConfig } from '../../../dist/lora/peft/config.js'
import { inspectAdapter } from '../../../dist/lora/peft/inspect.js'
import { folder, foldersWith, read } from '../inputs.mjs'
import { mutateJson, mutateSafetensors, mutateText } from '../mutate.mjs'

const CONFIG = 'adapter_config.json'

/** Returns the value of a promise, or the LowrankError with which it rejects. */
const settled = (promise) =>
  promise.then(
    (value) => ({ value }),
    (error) => {
      if (!(error instanceof LowrankError)) throw error
      return { error }
    },
  )

function isSame(first, second) {
  if (first.files.size !== second.files.size) return false
  return [...first.files].every(([name, bytes]) => Buffer.compare(bytes, second.files.get(name) ?? Buffer.of()) === 0)
}

async function checkFolder(files) {
  const directory = () => new MemoryDirectory(files)
  const loaded = await settled(loadAdapter(directory()))
  const inspected = await settled(inspectAdapter(directory()))
  const problems = inspected.error === undefined ? inspected.value.problems : [inspected.error]
  if ((loaded.error === undefined) !== (problems.length === 0)) {
    const found = problems.map(({ message }) => message).join('; ')
    throw new Error(`load and inspect disagree: load: ${loaded.error?.message ?? 'loads'}, inspect: ${found}`)
  }
  if (loaded.error !== undefined) throw loaded.error
  const [first, second] = [new MemoryDirectory(), new MemoryDirectory()]
  await saveAdapter(loaded.value, first)
  await saveAdapter(await loadAdapter(first), second)
  if (!isSame(first, second)) throw new Error('what was saved loads and saves as other bytes')
}

const folders = () => foldersWith(CONFIG).filter((_, i) => i % 5 === 0)

/** Changes one file of a folder. */
const inFolder = (name, file, mutate) => ({
  name,
  seeds: () => folders().filter((path) => file in folder(path)),
  make: (path) => read(`${path}/${file}`),
  mutate,
  check: (bytes, path) => checkFolder({ ...folder(path), [file]: bytes }),
})

export const targets = [
  inFolder('adapter-config', CONFIG, mutateJson),
  inFolder('adapter-weights', 'adapter_model.safetensors', mutateSafetensors),
  {
    name: 'adapter-config-alone',
    seeds: folders,
    make: (path) => read(`${path}/${CONFIG}`),
    mutate: mutateJson,
    check(bytes) {
      parsePeftConfig(bytes, CONFIG)
    },
  },
  {
    name: 'expression',
    seeds: () => [
      String.raw`.*\.layers\.(0|1|[2-9])\.(self_attn|mlp)\.(q|v)_proj`,
      '(?:a+)+b|(a|aa)*c{2,5}',
      String.raw`^(?P<x>model)\.(?!lm_head).*(?<=\.)[^\W\d_]+$`,
    ],
    make: (text) => Buffer.from(text),
    mutate: mutateText,
    check(bytes) {
      const pattern = fullMatch(bytes.toString(), 'target_modules')
      for (const name of ['model.layers.0.self_attn.q_proj', 'a'.repeat(100), '', 'ä.ſ']) pattern(name)
    },
  },
]
