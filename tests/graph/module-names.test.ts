// Names that mean one module, as exporters and versions of transformers write them.

import { expect, it } from 'vitest'
import { nameOfModule } from '../../src/graph/match/module-names.js'

it.each([
  // The layers of a Sequential, which PyTorch's exporter names twice.
  ['model.visual.merger.mlp.0', ['merger.mlp.mlp.0', 'merger.mlp.mlp.2'], 'merger.mlp.mlp.0'],
  ['merger.mlp.2', ['merger.mlp.mlp.0', 'merger.mlp.mlp.2'], 'merger.mlp.mlp.2'],
  // A module whose own name is that, and one that two could be.
  ['a.mlp.mlp.0', ['a.mlp.mlp.0', 'a.mlp.0'], 'a.mlp.mlp.0'],
  ['x.mlp.0', ['a.x.mlp.mlp.0', 'b.x.mlp.mlp.0'], undefined],
  ['mlp.1', ['merger.mlp.mlp.0'], undefined],
] as const)('%s among %j is %s', (module, names, found) => {
  expect(nameOfModule(new Set(names), module)).toBe(found)
})
