import { readFileSync } from 'node:fs'
import { expect, it } from 'vitest'
import { DataError, FormatError } from '../../src/base/errors.js'
import { parseSafetensorsHeader, readTensorF32 } from '../../src/formats/safetensors.js'
import { NodeDirectory } from '../../src/io/node/files.js'
import { logMel } from '../../src/sounds/log-mel.js'

const folder = 'tests/golden/sounds'
const { cases } = JSON.parse(readFileSync(`${folder}/golden.json`, 'utf8')) as {
  cases: Record<string, { config: Record<string, number>; samples: number }>
}

function sound(count: number): Float32Array {
  return Float32Array.from({ length: count }, (_, at) =>
    at > 4000 && at < 5000 ? 0 : 0.4 * Math.sin(0.05 * at) + 0.2 * Math.sin(1.3 * at) + 0.1 * Math.sin(2e-5 * at * at),
  )
}

it.each(Object.entries(cases))('makes the features of transformers: %s', async (name, { config, samples }) => {
  const file = await parseSafetensorsHeader(await new NodeDirectory(folder).open('features.safetensors'))
  const { data, shape } = await readTensorF32(file, name)
  const rate = config.sampling_rate ?? 16000
  const made = logMel(config, 'preprocessor_config.json')
  expect([made.bands, made.times]).toEqual(shape)
  const { values, isCut } = made.features({ samples: sound(samples), rate }, 'row')
  expect(isCut).toBe(samples > rate * config.chunk_length)
  let worst = 0
  data.forEach((value, i) => {
    worst = Math.max(worst, Math.abs(value - values[i]))
  })
  expect(worst).toBeLessThan(2e-5)
  await file.source.close()
})

it('refuses another rate, and a file without lengths', () => {
  const made = logMel({}, 'preprocessor_config.json')
  expect(() => made.features({ samples: [0], rate: 44100 }, 'data[3], audio')).toThrow(
    /data\[3\], audio: .*16000 samples in a second.*44100/,
  )
  expect(() => made.features({ samples: [0], rate: 44100 }, 'row')).toThrow(DataError)
  expect(() => logMel({ hop_length: 0 }, 'preprocessor_config.json')).toThrow(FormatError)
})
