import { describe, expect, it } from 'vitest'
import { ConfigError, MismatchError } from '../../../src/api/node.js'
import { MATMUL } from '../../../src/model/match/forms/float-product.js'
import type { Linear } from '../../../src/model/match/linears.js'
import { matchLayers, matchTargets } from '../../../src/model/match/match.js'
import { placeExperts } from '../../../src/model/place/experts.js'
import { TensorProto_DataType as DataType, NodeProtoSchema } from '../../../src/onnx/format/gen/onnx_pb.js'
import { create } from '../../../src/onnx/format/protobuf.js'
import { emptyGraph } from '../../onnx/toolkit.js'

function messageOf(work: () => unknown): string {
  try {
    work()
  } catch (error) {
    return (error as Error).message
  }
  return ''
}

const linear = (name: string, isHead = false): Linear => ({
  name,
  form: MATMUL,
  node: create(NodeProtoSchema),
  last: create(NodeProtoSchema),
  layout: 'float',
  problem: undefined,
  weight: 'w',
  dataType: DataType.FLOAT,
  transposed: false,
  k: 4,
  d: 6,
  input: 'x',
  output: 'y',
  isHead,
  fused: undefined,
})

const linears = [
  ...[0, 1, 2].flatMap((i) =>
    ['self_attn.q_proj', 'self_attn.v_proj', 'mlp.up_proj'].map((name) => linear(`model.layers.${i}.${name}`)),
  ),
  linear('lm_head', true),
]

const names = (found: readonly Linear[]) => found.map(({ name }) => name.replace('model.layers.', ''))

describe('targets', () => {
  it('all-linear is every layer but the output embedding', () => {
    expect(matchTargets(linears, { targetModules: 'all-linear' })).toHaveLength(9)
    expect(matchTargets(linears, { targetModules: 'ALL-LINEAR' })).toHaveLength(9)
  })

  it('a list names modules or their last parts', () => {
    expect(names(matchTargets(linears, { targetModules: ['q_proj', 'lm_head'] }))).toEqual([
      '0.self_attn.q_proj',
      '1.self_attn.q_proj',
      '2.self_attn.q_proj',
      'lm_head',
    ])
    expect(names(matchTargets(linears, { targetModules: ['model.layers.1.mlp.up_proj'] }))).toEqual(['1.mlp.up_proj'])
  })

  it('a string is an expression for whole names', () => {
    expect(names(matchTargets(linears, { targetModules: '.*\\.[02]\\..*v_proj' }))).toEqual([
      '0.self_attn.v_proj',
      '2.self_attn.v_proj',
    ])
  })

  it('exclusions and layers narrow it', () => {
    const rules = { targetModules: ['q_proj', 'up_proj'], excludeModules: ['up_proj'], layersToTransform: [1, 2] }
    expect(names(matchTargets(linears, rules))).toEqual(['1.self_attn.q_proj', '2.self_attn.q_proj'])
  })

  it.each<[string, string | string[], RegExp]>([
    ['a misspelled name', ['q_prj'], /no module of the model matches "q_prj"\. Did you mean q_proj/],
    ['one misspelled name among good ones', ['q_proj', 'up_porj'], /"up_porj"\. Did you mean up_proj/],
    ['a name of another architecture', ['c_attn'], /linear layers are q_proj, v_proj, up_proj, lm_head/],
    ['an expression for parts of names', 'q_proj', /no module of the model matches "q_proj"\. Did you mean/],
  ])('%s is an error with near misses', (_, targetModules, message) => {
    expect(() => matchTargets(linears, { targetModules })).toThrow(message)
    expect(() => matchTargets(linears, { targetModules })).toThrow(MismatchError)
  })

  it('that are none, or no expression, are errors', () => {
    expect(() => matchTargets(linears, { targetModules: [] })).toThrow(ConfigError)
    expect(() => matchTargets(linears, { targetModules: '(' })).toThrow(ConfigError)
    expect(() => matchTargets([], { targetModules: 'all-linear' })).toThrow(/a graph without linear layers/)
  })
})

describe('fused layers', () => {
  const parts = ['q_proj', 'k_proj', 'v_proj'].map((name, i) => ({
    ...linear(`model.layers.0.self_attn.${name}`),
    d: 2,
    fused: { module: 'model.layers.0.self_attn.qkv_proj', start: 2 * i, width: 6 },
  }))

  it('are adapted by their parts, or whole where the whole is named', () => {
    expect(matchTargets(parts, { targetModules: 'all-linear' }).map(({ d }) => d)).toEqual([2, 2, 2])
    expect(matchTargets(parts, { targetModules: ['v_proj'] }).map(({ d }) => d)).toEqual([2])
    const [whole, ...others] = matchTargets(parts, { targetModules: ['qkv_proj'] })
    expect(whole).toMatchObject({ name: 'model.layers.0.self_attn.qkv_proj', d: 6, fused: undefined })
    expect(others).toEqual([])
    expect(matchLayers(parts, [{ name: whole.name, d: 6, k: 4 }])[0].linear).toEqual(whole)
  })
})

describe("an adapter's layers", () => {
  const layer = (name: string, d = 6, k = 4) => ({ name, d, k })
  const placed = (...layers: ReturnType<typeof layer>[]) =>
    matchLayers(linears, layers).map(({ linear }) => linear.name)

  it('go where the names are equal', () => {
    expect(placed(layer('lm_head'), layer('model.layers.2.mlp.up_proj'))).toEqual([
      'lm_head',
      'model.layers.2.mlp.up_proj',
    ])
  })

  it('go where one name ends with the other', () => {
    expect(placed(layer('language_model.model.layers.0.mlp.up_proj'))).toEqual(['model.layers.0.mlp.up_proj'])
    expect(placed(layer('layers.0.mlp.up_proj'))).toEqual(['model.layers.0.mlp.up_proj'])
  })

  it('go to each call of a module', () => {
    const twice = [...linears, linear('lm_head')]
    expect(matchLayers(twice, [layer('lm_head')])).toHaveLength(2)
  })

  it('without a module are named, with near misses', () => {
    const layers = [1, 2, 3, 4, 5, 6, 7].map((i) => layer(`model.layers.${i + 10}.mlp.up_proj`))
    expect(() => matchLayers(linears, layers)).toThrow(
      /no module for model\.layers\.\*\.mlp\.up_proj \(7\)\. Nearest to the first: model\.layers\.1\.mlp\.up_proj/,
    )
    expect(() => placed(layer('up_proj'))).toThrow(MismatchError)
  })

  // PEFT's all-linear adapts these layers if they are nn.Linear in the model.
  it.each([
    [['model.layers.0.mlp.experts.0.up_proj', 'model.layers.0.mlp.experts.1.up_proj', 'model.layers.0.mlp.gate']],
    [['esm.contact_head.regression']],
  ])('that the export has dropped are named by kind, and the rest is offered: %j', (dropped) => {
    const layers = [...dropped, 'model.layers.0.mlp.up_proj', 'model.layers.1.mlp.up_proj'].map((name) => layer(name))
    const shown =
      dropped.length === 1 ? dropped[0] : 'model.layers.*.mlp.experts.*.up_proj (2), model.layers.0.mlp.gate'
    expect(messageOf(() => matchLayers(linears, layers))).toContain(`no module for ${shown}. `)
    expect(messageOf(() => matchLayers(linears, layers))).toMatch(
      /leave (it|them) out with `allowMissing`: the rest of the adapter is model\.layers\.\*\.mlp\.up_proj \(2\)$/,
    )
  })

  it.each([
    [['model.layers.0.shared_mlp.input_linear', 'model.layers.1.shared_mlp.input_linear']],
    [['model.layers.0.mlp.experts.0.up_proj', 'model.layers.0.mlp.gate', 'model.layers.0.feed_forward.w1']],
    [['base.model.layers.1.self_attn.qkv']],
  ])('of blocks that the model has are not offered to be left out: %j', (renamed) => {
    const layers = [...renamed, 'model.layers.0.mlp.up_proj', 'model.layers.1.mlp.up_proj'].map((name) => layer(name))
    const message = messageOf(() => matchLayers(linears, layers))
    expect(message).toMatch(/has them under other names, or in operators that cannot be adapted/)
    expect(message).not.toContain('allowMissing')
  })

  it('of a tower that the model does not have are', () => {
    const layers = ['visual.layers.0.mlp.up_proj', 'model.layers.1.mlp.up_proj'].map((name) => layer(name))
    expect(messageOf(() => matchLayers(linears, layers))).toContain('leave it out with `allowMissing`')
  })

  it('of kinds that the model has in other layers are those of a larger model', () => {
    const layers = [0, 1, 2, 3, 4, 5].map((i) => layer(`model.layers.${i}.mlp.up_proj`))
    const message = messageOf(() => matchLayers(linears, layers))
    expect(message).toContain('Layers of the same kinds are in this model: give the model')
    expect(message).not.toContain('allowMissing')
  })

  it('of another shape are refused', () => {
    expect(() => placed(layer('lm_head', 6, 5))).toThrow(/lm_head: .*expected a weight of \(6, 4\).*got \(6, 5\)/)
  })
})

it('says why the last layers of Gemma 3n and 4 have no key and value', () => {
  const names = ['q_proj', 'k_proj', 'v_proj'].map((name) => `model.layers.0.self_attn.${name}`)
  const linears = [...names, 'model.layers.1.self_attn.q_proj'].map((name) => linear(name))
  const layersOf = (...names: string[]) => names.map((name) => ({ name, d: 6, k: 4 }))
  const borrowed = ['model.layers.1.self_attn.v_proj', 'model.layers.1.self_attn.k_proj']
  const message = messageOf(() => matchLayers(linears, layersOf(...names, ...borrowed)))
  expect(message).toMatch(/layers.1.self_attn.v_proj, .*k_proj: these layers read the keys and values of an earlier/)
  const other = messageOf(() => matchLayers(linears.slice(0, 2), layersOf('model.layers.0.self_attn.v_proj')))
  expect(other).not.toContain('earlier layer')
})

describe('a parameter of experts that are layers of their own', () => {
  const experts = 'model.layers.0.mlp.experts'
  const ends = [0, 1, 2, 3].flatMap((expert) => [`${expert}.gate_proj`, `${expert}.up_proj`])
  const parameter = { name: `${experts}.gate_up_proj`, experts: 4, d: 12, k: 4 }
  const place = (present: readonly string[]) => {
    const layers = present.map((end) => linear(`${experts}.${end}`))
    return placeExperts(emptyGraph(17), layers, parameter, {}).layers.map(({ expert, start }) => [expert, start])
  }

  it('has a place in each layer', () => {
    expect(place(ends)).toEqual([0, 0, 1, 1, 2, 2, 3, 3].map((expert, i) => [expert, 6 * (i % 2)]))
  })

  it.each(ends.slice(2))('is refused if the graph lacks expert %s', (dropped) => {
    expect(() => place(ends.filter((end) => end !== dropped))).toThrow(/expected \(3, 12, 4\), got \(4, 12, 4\)/)
  })
})
