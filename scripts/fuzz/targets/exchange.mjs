// Adapters of mlx-lm.

import { MemoryDirectory } from '../../../dist/core/base/bytes.js'
import { convert } from '../../../dist/merge/exchange/convert.js'
import { folder } from '../inputs.mjs'
import { mutateJson, mutateSafetensors } from '../mutate.mjs'

const place = (files, file) => ({ directory: new MemoryDirectory(files), file })

const toPeft = (source) => convert(source, { to: 'peft', out: place({}, undefined), base: undefined, dtype: 'keep' })

let mlx
/** Makes a folder as lowrank writes it for mlx-lm. */
async function mlxFiles() {
  if (mlx === undefined) {
    const out = place({}, undefined)
    const source = place(folder('tests/golden/kinds/dora'), undefined)
    await convert(source, { to: 'mlx', out, base: undefined, dtype: 'keep' })
    mlx = Object.fromEntries(out.directory.files)
  }
  return mlx
}
const files = await mlxFiles()

export const targets = [
  {
    name: 'mlx-config',
    seeds: () => ['dora'],
    make: () => Buffer.from(files['adapter_config.json']),
    mutate: mutateJson,
    check: (bytes) => toPeft(place({ ...files, 'adapter_config.json': bytes }, undefined)),
  },
  {
    name: 'mlx-weights',
    seeds: () => ['dora'],
    make: () => Buffer.from(files['adapters.safetensors']),
    mutate: mutateSafetensors,
    check: (bytes) => toPeft(place({ ...files, 'adapters.safetensors': bytes }, undefined)),
  },
]
