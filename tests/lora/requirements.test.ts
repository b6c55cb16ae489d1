import { describe, expect, test } from 'vitest'
import {
  ConfigError,
  EmbeddingLora,
  LoraAdapter,
  type LoraConfigInput,
  LoraLayer,
  loadAdapter,
  MemoryDirectory,
  ShapeError,
  saveAdapter,
  UnsupportedError,
} from '../../src/api/node.js'
import { product } from '../../src/core/linalg/product.js'
import { resolveConfig } from '../../src/lora/config.js'
import { rowNorms } from '../../src/lora/delta.js'
import { openAdapter } from '../../src/lora/peft/open.js'
import { requireHandled, requirePlainConfig, requireUnchangedBase } from '../../src/lora/requirements.js'
import { ModelProtoSchema } from '../../src/onnx/format/gen/onnx_pb.js'
import { create } from '../../src/onnx/format/protobuf.js'
import { train } from '../../src/train/train.js'
import { random } from './matrices.js'

function plain(config: LoraConfigInput = {}): LoraAdapter {
  const adapter = new LoraAdapter({ rank: 2, ...config })
  adapter.addFactors('q', random(2, 5, 1), random(4, 2, 2), {
    magnitude: config.useDora ? [1, 2, 3, 4] : undefined,
    biasB: config.loraBias ? [1, 2, 3, 4] : undefined,
  })
  return adapter
}

const row = { dtype: 'fp32', shape: [1, 2], data: new Uint8Array(new Float32Array([1, 2]).buffer) } as const

describe('adapters of a base that their start has changed', () => {
  test.each<[string, string]>([
    ['pissa', 'Turn it into plain LoRA first: `lowrank to-plain` (toPlain)'],
    ['lora-ga', 'with the adapter from before training: `lowrank to-plain --initial DIR` (toPlain)'],
  ])('of %s are refused with the way to a plain one', (init, hint) => {
    const config = resolveConfig({ rank: 2, init: init as never })
    expect(() => requireUnchangedBase({ config }, 'a session')).toThrow(UnsupportedError)
    expect(() => requireUnchangedBase({ config }, 'a session')).toThrow(`which changed the base weights`)
    expect(() => requireUnchangedBase({ config }, 'a session')).toThrow(hint)
  })
})

describe('only plain linear layers', () => {
  test.each<[string, LoraAdapter, RegExp]>([
    ['DoRA', plain({ useDora: true }), /^q: magnitudes of DoRA \(use_dora\) are not implemented for training/],
    ['a bias of B', plain({ loraBias: true }), /^q: biases of B \(lora_bias\)/],
    ['an embedding', withParts((a) => a.addEmbedding('e', random(2, 7, 1), random(3, 2, 2))), /^e: adapted embeddings/],
    ['a replaced tensor', withParts((a) => a.addReplacement('norm.weight', row)), /^norm\.weight: whole tensors/],
    [
      'rows',
      withParts((a) => a.addTokenRows('e', [3], row)),
      /^e\[tokens\]: rows of tokens \(trainable_token_indices\)/,
    ],
  ])('%s is refused by name', async (_, adapter, message) => {
    expect(() => requireHandled(adapter, ['linear'], 'training')).toThrow(UnsupportedError)
    expect(() => requireHandled(adapter, ['linear'], 'training')).toThrow(message)
    const folder = new MemoryDirectory()
    await saveAdapter(adapter, folder)
    const opened = await openAdapter(folder)
    expect(() => requireHandled(opened, ['linear'], 'training')).toThrow(message)
    await opened.close()
    const kinds = (of: LoraAdapter) => new Map(of.parts().map(({ name, kind }) => [name, kind]))
    expect(kinds(await loadAdapter(folder))).toEqual(kinds(adapter))
  })

  test('pass', () => {
    expect(() => requireHandled(plain(), ['linear'], 'training')).not.toThrow()
    expect(() => requirePlainConfig(resolveConfig(), 'training')).not.toThrow()
  })

  test.each<LoraConfigInput>([
    { useDora: true },
    { loraBias: true },
    { bias: 'all' },
    { modulesToSave: ['score'] },
    { trainableTokenIndices: [1] },
  ])('%j: a config that asks for more is refused', (input) => {
    expect(() => requirePlainConfig(resolveConfig(input), 'training')).toThrow(
      `${Object.keys(input)[0]}: not implemented for training`,
    )
  })
})

function withParts(add: (adapter: LoraAdapter) => unknown): LoraAdapter {
  const adapter = new LoraAdapter({ rank: 2, modulesToSave: ['norm'] })
  adapter.addFactors('q', random(2, 5, 1), random(4, 2, 2))
  add(adapter)
  return adapter
}

describe('layers with vectors', () => {
  const base = random(4, 5, 3)

  test('a new DoRA layer changes nothing yet: its magnitude is ‖W‖', () => {
    const layer = new LoraLayer(base, { rank: 2, useDora: true })
    expect(layer.magnitude).toEqual(rowNorms(base))
    layer.effectiveWeight().data.forEach((value, i) => {
      expect(value).toBeCloseTo(base.data[i], 12)
    })
    expect(layer.trainableParams()).toBe(2 * (4 + 5) + 4)
    expect(layer.totalParams()).toBe(4 * 5 + 2 * (4 + 5) + 4)
  })

  test('rows of the effective weight have the magnitude as their norm', () => {
    const layer = LoraLayer.fromFactors(random(2, 5, 1), random(4, 2, 2), { useDora: true }, 'q', {
      magnitude: [1, 2, 3, 4],
    }).attachBase(base)
    rowNorms(layer.effectiveWeight()).forEach((value, i) => {
      expect(value).toBeCloseTo(i + 1, 12)
    })
  })

  test('with dropout, the base counts in full once and its difference through the dropped input', () => {
    const vectors = { magnitude: [1, 2, 3, 4] }
    const config = { rank: 2, useDora: true, dropout: 0.5, alpha: 3 }
    const layer = LoraLayer.fromFactors(random(2, 5, 1), random(4, 2, 2), config, 'q', vectors).attachBase(base)
    const zeroInput = random(1, 5, 7)
    const eye = { data: Float64Array.from({ length: 25 }, (_, i) => (i % 6 === 0 ? 1 : 0)), shape: [5, 5] as const }
    layer.train()
    const output = layer.forward(eye) // row j: what input j gives, dropped or doubled
    const effective = layer.effectiveWeight()
    let dropped = 0
    for (let j = 0; j < 5; j++) {
      const isDropped = Math.abs(output.data[j * 4] - base.data[j]) < 1e-12
      if (isDropped) dropped++
      for (let i = 0; i < 4; i++) {
        const w = base.data[i * 5 + j]
        const expected = isDropped ? w : w + 2 * (effective.data[i * 5 + j] - w)
        expect(output.data[j * 4 + i]).toBeCloseTo(expected, 12)
      }
    }
    expect(dropped).toBeGreaterThan(0)
    expect(dropped).toBeLessThan(5)
    expect(layer.eval().forward(zeroInput).shape).toEqual([1, 4])
  })

  test('a bias of B counts merged and not, scaled like the product', () => {
    const layer = LoraLayer.fromFactors(random(2, 5, 1), random(4, 2, 2), { loraBias: true, alpha: 6 }, 'q', {
      biasB: [1, 2, 3, 4],
    }).attachBase(base)
    expect(layer.biasDelta()).toEqual(Float64Array.of(3, 6, 9, 12))
    const nothing = { data: new Float64Array(5), shape: [1, 5] as const }
    expect(layer.forward(nothing).data).toEqual(Float64Array.of(3, 6, 9, 12))
    layer.merge()
    expect(layer.forward(nothing).data).toEqual(Float64Array.of(3, 6, 9, 12))
  })

  test('vectors and config must agree', () => {
    const make = (config: LoraConfigInput, vectors: object) => () =>
      LoraLayer.fromFactors(random(2, 5, 1), random(4, 2, 2), config, 'q', vectors)
    expect(make({ useDora: true }, {})).toThrow(ConfigError)
    expect(make({ useDora: true }, {})).toThrow('q.magnitude: missing, although useDora is on')
    expect(make({}, { magnitude: [1, 2, 3, 4] })).toThrow('q.magnitude: only goes with useDora')
    expect(make({}, { biasB: [1, 2, 3, 4] })).toThrow('q.biasB: only goes with loraBias')
    expect(make({ useDora: true }, { magnitude: [1] })).toThrow(ShapeError)
  })

  test('no new layer without its weight', () => {
    expect(() => LoraLayer.ofShape([4, 5], { rank: 2, useDora: true }, 'q')).toThrow(UnsupportedError)
  })
})

describe('embeddings', () => {
  const embedding = () => new EmbeddingLora(random(2, 6, 1), random(3, 2, 2), { rank: 2, alpha: 4 }, 'e')

  test('rows of E + s·(B·A)ᵀ', () => {
    const layer = embedding()
    const base = random(6, 3, 5)
    const effective = layer.effectiveWeight(base)
    const delta = product(layer.weightB, layer.weightA, { scale: layer.scaling }) // (D, V)
    effective.data.forEach((value, i) => {
      expect(value).toBeCloseTo(base.data[i] + delta.data[(i % 3) * 6 + Math.floor(i / 3)], 12)
    })
    expect(layer.trainableParams()).toBe(2 * (6 + 3))
    expect(layer.totalParams()).toBe(6 * 3 + 2 * (6 + 3))
  })

  test('a base of another shape is an error', () => {
    expect(() => embedding().effectiveWeight(random(3, 6, 5))).toThrow(
      /^e\.effectiveWeight: wrong shape; expected \(6, 3\)/,
    )
  })

  test('share their names with an adapter’s other layers', () => {
    const adapter = plain()
    expect(() => adapter.addEmbedding('q', random(2, 6, 1), random(3, 2, 2))).toThrow(/already/)
  })
})

describe('where only those are handled', () => {
  const empty = { proto: create(ModelProtoSchema, { graph: {} }) }

  test('training refuses the config and the adapter', async () => {
    const options = {
      model: { name: 'm', directory: new MemoryDirectory(), config: {}, graphs: {}, onnx: empty } as never,
      data: [],
    }
    await expect(train({ ...options, config: { loraBias: true } })).rejects.toThrow(
      'loraBias: not implemented for training',
    )
    await expect(train({ ...options, adapter: plain({ loraBias: true }) })).rejects.toThrow(
      /^q: biases of B .* for training/,
    )
  })
})
