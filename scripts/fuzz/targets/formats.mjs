// Files of weights: safetensors, checkpoints with an index, strict JSON.

import { MemoryDirectory, MemorySource } from '../../../dist/core/base/bytes.js'
import { openCheckpoint } from '../../../dist/files/checkpoint.js'
import { parseJson } from '../../../dist/files/json.js'
import { parseSafetensorsHeader, readTensorF32 } from '../../../dist/files/safetensors.js'
import { filesLike, folder, read } from '../inputs.mjs'
import { mutateJson, mutateSafetensors } from '../mutate.mjs'

async function readTensors(file) {
  for (const name of [...file.tensors.keys()].slice(0, 50)) await readTensorF32(file, name)
}

const INDEX = 'model.safetensors.index.json'

/** A checkpoint in two shards, with an index. */
function sharded() {
  const model = folder('tests/golden/merge/llama/base')['model.safetensors']
  const end = 8 + Number(model.readBigUInt64LE(0))
  const names = Object.keys(JSON.parse(model.subarray(8, end).toString())).filter((name) => name !== '__metadata__')
  const index = {
    metadata: { total_size: 1 },
    weight_map: Object.fromEntries(names.map((name) => [name, 'a.safetensors'])),
  }
  return { [INDEX]: Buffer.from(JSON.stringify(index)), 'a.safetensors': model }
}

export const targets = [
  {
    name: 'safetensors',
    seeds: () => filesLike(/\.safetensors$/).filter((_, i) => i % 9 === 0),
    make: read,
    mutate: mutateSafetensors,
    async check(bytes) {
      await readTensors(await parseSafetensorsHeader(new MemorySource(bytes)))
    },
  },
  {
    name: 'checkpoint-index',
    seeds: () => ['llama'],
    make: () => sharded()[INDEX],
    mutate: mutateJson,
    async check(bytes) {
      await openCheckpoint(new MemoryDirectory({ ...sharded(), [INDEX]: bytes }))
    },
  },
  {
    name: 'json',
    seeds: () => filesLike(/(config|expected)\.json$/).filter((_, i) => i % 9 === 0),
    make: read,
    mutate: mutateJson,
    check(bytes) {
      parseJson(bytes, 'input')
    },
  },
]
