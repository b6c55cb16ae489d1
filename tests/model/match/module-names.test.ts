// Different names of the same module, from exporters and versions of transformers.

import { readFileSync } from 'node:fs'
import { expect, it } from 'vitest'
import { endAlike, nameOfModule } from '../../../src/model/match/module-names.js'

it.each([
  // PyTorch's exporter repeats the name of a Sequential in its layers.
  ['model.visual.merger.mlp.0', ['merger.mlp.mlp.0', 'merger.mlp.mlp.2'], 'merger.mlp.mlp.0'],
  ['merger.mlp.2', ['merger.mlp.mlp.0', 'merger.mlp.mlp.2'], 'merger.mlp.mlp.2'],
  // A module that really has this name, and a name that two modules could have.
  ['a.mlp.mlp.0', ['a.mlp.mlp.0', 'a.mlp.0'], 'a.mlp.mlp.0'],
  ['x.mlp.0', ['a.x.mlp.mlp.0', 'b.x.mlp.mlp.0'], undefined],
  ['mlp.1', ['merger.mlp.mlp.0'], undefined],
] as const)('%s among %j is %s', (module, names, found) => {
  expect(nameOfModule(new Set(names), module)).toBe(found)
})

/** The names of linear layers in transformers 4 and in transformers 5, as pairs. */
const VERSIONS = {
  vit: [
    ['encoder.layer.0.attention.attention.query', 'layers.0.attention.q_proj'],
    ['encoder.layer.0.attention.attention.key', 'layers.0.attention.k_proj'],
    ['encoder.layer.0.attention.attention.value', 'layers.0.attention.v_proj'],
    ['encoder.layer.0.attention.output.dense', 'layers.0.attention.o_proj'],
    ['encoder.layer.0.intermediate.dense', 'layers.0.mlp.fc1'],
    ['encoder.layer.0.output.dense', 'layers.0.mlp.fc2'],
    ['encoder.layer.11.output.dense', 'layers.11.mlp.fc2'],
  ],
  dinov2: [
    ['encoder.layer.0.attention.attention.query', 'encoder.layer.0.attention.q_proj'],
    ['encoder.layer.0.attention.output.dense', 'encoder.layer.0.attention.o_proj'],
    ['encoder.layer.0.mlp.fc1', 'encoder.layer.0.mlp.fc1'],
  ],
  swin: [
    ['encoder.layers.0.blocks.0.attention.self.query', 'encoder.layers.0.blocks.0.attention.q_proj'],
    ['encoder.layers.0.blocks.0.attention.output.dense', 'encoder.layers.0.blocks.0.attention.o_proj'],
    ['encoder.layers.0.blocks.0.intermediate.dense', 'encoder.layers.0.blocks.0.mlp.fc1'],
    ['encoder.layers.1.blocks.0.output.dense', 'encoder.layers.1.blocks.0.mlp.fc2'],
    ['encoder.layers.0.downsample.reduction', 'encoder.layers.0.downsample.reduction'],
  ],
} as const

it.each(Object.entries(VERSIONS))(
  '%s: versions of transformers mean the same modules, with and without the part around them',
  (type, names) => {
    for (const [from, to] of [
      [0, 1],
      [1, 0],
    ]) {
      for (const [around, own] of [
        ['', ''],
        [`${type}.`, ''],
        ['', `${type}.`],
        [`${type}.`, `${type}.`],
      ]) {
        const others = new Set([...names.map((pair) => around + pair[from]), 'classifier'])
        for (const pair of names) expect(nameOfModule(others, own + pair[to])).toBe(around + pair[from])
        expect(nameOfModule(others, `${own}layers.7.attention.q_proj`)).toBeUndefined()
      }
    }
  },
)

// scripts/golden/module_names.py
const { classes }: { classes: Record<string, [string, string][]> } = JSON.parse(
  readFileSync('tests/golden/module-names.json', 'utf8'),
)

it.each(Object.entries(classes))('%s: names of transformers 4 and 5 mean the same linear layers', (_, names) => {
  expect(names.some(([older, today]) => older !== today)).toBe(true)
  for (const [from, to] of [
    [0, 1],
    [1, 0],
  ]) {
    const others = names.map((pair) => pair[from])
    for (const pair of names) {
      expect(nameOfModule(new Set(others), pair[to])).toBe(pair[from])
      const without = others.filter((name) => !endAlike(name, pair[from]))
      expect(nameOfModule(new Set(without), pair[to])).toBeUndefined()
    }
  }
})
