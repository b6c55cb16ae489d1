// GGUF files of adapters. Names and the order of q and k depend on the model, so both ways need the base.

import { type Place, withSource, writeThrough } from '../../base/bytes.js'
import { ConfigError } from '../../base/errors.js'
import { openAdapter } from '../../peft/open.js'
import { type ExchangeFormat, startsWith, type Written } from '../format.js'
import { type GgufBase, readBase } from './base.js'
import { readGgufAdapter } from './read.js'
import { writeGgufAdapter } from './write.js'

export const GGUF: ExchangeFormat = {
  detect: (place) => startsWith(place, (start) => String.fromCharCode(...start.subarray(0, 4)) === 'GGUF'),
  open: ({ directory, file }, base) =>
    withSource(directory, file!, async (source) => openAdapter(await readGgufAdapter(source, await openBase(base)))),
  async write(adapter, { directory, file }, { base, dtype, ...run }) {
    const opened = await openBase(base)
    let report: Written = { layers: 0 }
    await writeThrough(directory, file!, async (sink) => {
      report = await writeGgufAdapter(adapter, opened, sink, dtype, run)
    })
    return report
  },
}

async function openBase(base: Place | undefined): Promise<GgufBase> {
  if (base !== undefined) return readBase(base.directory, base.file)
  throw new ConfigError({
    where: 'base',
    what: 'missing: names and the order of q and k in GGUF depend on the model',
    expected: 'a folder with the model’s config.json, or its GGUF file',
  })
}
