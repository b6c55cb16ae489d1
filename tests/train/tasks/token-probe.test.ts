import { expect, it } from 'vitest'
import { Builder } from '../../../src/onnx/view/builder.js'
import { tokenProbe } from '../../../src/train/tasks/token-probe.js'
import { emptyGraph } from '../../onnx/toolkit.js'

const sequencesOf = (build: (g: Builder) => void) => {
  const graph = emptyGraph(17)
  build(new Builder(graph, 'test'))
  const { batches, lengths } = tokenProbe(graph)
  return { sequences: batches.map(({ sequence }) => sequence), chunks: lengths.find(({ name }) => name === 'chunks') }
}

it('measures shapes at one chunk and at two, so that the number of chunks is no constant', () => {
  expect(sequencesOf((g) => g.neg('x'))).toEqual({ sequences: [3, 7], chunks: undefined })
  const fused = sequencesOf((g) => g.op('com.microsoft:LinearAttention', ['q', 'k', 'v']))
  expect(fused.sequences).toEqual([3, 70])
  // PyTorch's exporter pads the last chunk by the remainder of a division.
  const { sequences, chunks } = sequencesOf((g) => g.op('Mod', ['length', g.int(256)]))
  expect(sequences).toEqual([3, 262])
  const feeds = (length: number) => ({
    input_ids: { type: 'int64' as const, data: new BigInt64Array(length), dims: [1, length] },
  })
  expect([3, 256, 257].map((length) => chunks?.of(feeds(length)))).toEqual([1, 1, 2])
})
