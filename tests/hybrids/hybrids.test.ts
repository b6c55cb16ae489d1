// Models with linear attention and state-space layers: a layer of each kind, and texts longer than a chunk.

import { afterAll, beforeAll, describe, expect, it } from 'vitest'
import { inspectGraphs } from '../../src/api/inspect-onnx.js'
import { PackedExamples } from '../../src/model/text/packed-examples.js'
import { runtimeOf } from '../../src/onnx/runtime/onnxruntime.js'
import { floatsOf } from '../../src/onnx/runtime/runtime.js'
import { ModelSession } from '../../src/run/model-session.js'
import { buildTrainingGraph } from '../../src/train/graph/training-graph.js'
import { causalLm } from '../../src/train/tasks/causal-lm.js'
import { layersOf, relativeError } from '../model/golden.js'
import { oneThread } from '../run/models.js'
import { int64 } from '../several-graphs.js'
import { cases } from '../thorough.js'
import {
  type Cell,
  lossesWithoutBranch,
  mergeDifference,
  openCell,
  sessionDifference,
  trainDifferences,
} from './cell.js'

// In half precision, PyTorch's logits differ by as much from its float32 logits.
describe.each(
  cases<[string, string, number]>(
    [
      ['qwen3_5', 'mobius', 1e-4],
      ['granite_h', 'mobius', 1e-4],
      ['olmo_hybrid', 'dynamo', 1e-4],
      ['lfm2', 'liquid-q4', 1e-4],
      ['lfm2_moe', 'genai-qmoe-q4', 1e-4],
    ],
    [['qwen3_5', 'mobius-q4f16', 2e-2]],
  ),
)('%s by %s', (family, exporter, tolerance) => {
  let cell: Cell
  beforeAll(async () => {
    cell = await openCell(`tests/golden/hybrids/${family}`, exporter)
  })
  afterAll(() => cell.close())

  it('gives PEFT’s logits in sessions and merged', async () => {
    expect(await sessionDifference(cell)).toBeLessThan(tolerance)
    expect(await mergeDifference(cell)).toBeLessThan(tolerance)
  })

  it('gives each row of a batch its own adapter', async () => {
    const { model, adapter, numbers } = cell
    const session = await ModelSession.open(model, { adapters: { own: adapter } })
    const { inputIds } = numbers.batches.unequal
    const rows = inputIds.map((ids) => ids.slice(0, 9))
    const logits = async (ids: number[][], adapter: (string | null)[]) => {
      const feeds = { input_ids: int64(ids.flat(), [ids.length, 9]) }
      return Array.from(floatsOf((await session.run(feeds, { adapter })).logits))
    }
    const together = await logits(rows, ['own', null])
    const alone = [...(await logits([rows[0]], ['own'])), ...(await logits([rows[1]], [null]))]
    expect(relativeError(together, alone)).toBeLessThan(tolerance / 10)
    await session.dispose()
  })

  it('is inspected as trainable in every layer', async () => {
    const { linears } = await inspectGraphs(cell.model.directory, ['onnx/model.onnx'], true)
    expect(linears.length).toBeGreaterThanOrEqual(cell.adapter.names().length)
    expect(linears.filter(({ train }) => !train)).toEqual([])
  })

  it('packs no texts into one row: the states of one would go on in the next', async () => {
    const { model, adapter } = cell
    const inputIds = Int32Array.of(5, 6, 7)
    const packed = new PackedExamples({ length: 2, at: () => ({ inputIds, labels: inputIds }) }, 8)
    const task = causalLm.open(model, packed)
    const training = buildTrainingGraph(model.onnx, runtimeOf(oneThread), task, { layers: layersOf(adapter) })
    await expect(training).rejects.toThrow(/Conv.*: records in one row would see one another through it/)
  })

  it('has PEFT’s losses, gradients and steps', async () => {
    const { loss, gradient, worst } = await trainDifferences(cell)
    expect(loss).toBeLessThan(1e-5)
    expect(gradient, worst).toBeLessThan(1e-3)
  })

  it('has another loss without the branch of any module', async () => {
    const losses = await lossesWithoutBranch(cell)
    expect(losses.size).toBe(cell.adapter.names().length)
    for (const [name, loss] of losses) {
      expect(Math.abs(loss - cell.numbers.loss.unequal), name).toBeGreaterThan(2e-5)
    }
  })
})
