// An adapter's layers under the names and in the types of a graph's inputs for adapters, for ONNX Runtime's own LoRA.

import { closing, type Source } from '../../base/bytes.js'
import { MismatchError } from '../../base/errors.js'
import type { NamedFactors } from '../../exchange/exchange-format.js'
import { DataType } from '../../formats/onnx/tensors.js'
import { graphDtypes } from '../../graph/graph-file.js'
import { findLinears } from '../../graph/match/linears.js'
import { placeAdapter } from '../../graph/match/place-adapter.js'
import { readGraph } from '../../graph/view/graph.js'
import { dimsOfInput } from '../../graph/view/value-info.js'
import type { LoraAdapter } from '../../lora/adapter.js'
import { loadModel } from '../model.js'
import { openSource } from '../sources.js'

/**
 * Names the layers as the graph does, which may split a layer of the adapter into several. The graph is the model's own
 * or what `addLoraInputs` made of it: then each layer needs its inputs. Returns undefined for a base without a graph.
 *
 * @throws MismatchError if the graph has no such layer, no inputs for it, or inputs for another rank
 */
export async function graphFactors(adapter: LoraAdapter, base: Source): Promise<NamedFactors[] | undefined> {
  const { directory, file } = await openSource(base, 'base')
  const dtypes = file === undefined ? await graphDtypes(directory) : []
  if (file === undefined ? dtypes.length === 0 : !file.endsWith('.onnx')) return undefined
  return closing(await loadModel(base, { dtype: dtypes.length === 1 ? dtypes[0] : undefined }), async (model) => {
    const graph = readGraph(model.onnx)
    // They have initializers, so that the graph does not count them among its inputs.
    const ranks = new Map(model.onnx.proto.graph?.input.map((input) => [input.name, dimsOfInput(input)[1]]))
    const hasInputs = [...ranks.keys()].some((name) => name.endsWith('.lora_A.weight'))
    const placed = placeAdapter(graph, findLinears(graph), adapter.parts('linear'), true)
    const named = new Map(
      placed.map(({ name: part, layer, linear: { name, dataType } }): [string, NamedFactors] => {
        const input = `${name}.lora_A.weight`
        if (hasInputs) checkInput(part, input, ranks.has(input), ranks.get(input), layer.rank)
        const { weightA, weightB, scaling } = layer
        return [name, { name, weightA, weightB, scaling, dtype: dataType === DataType.FLOAT16 ? 'fp16' : 'fp32' }]
      }),
    )
    return [...named.values()]
  })
}

function checkInput(part: string, input: string, isThere: boolean, rank: number | undefined, wanted: number): void {
  const where = `base: ${input}`
  if (!isThere) {
    throw new MismatchError({
      where,
      what: `the graph has no such input, which the adapter's ${part} needs`,
      hint: 'Make the graph with target modules that include it (lowrank lora-inputs --target-modules)',
    })
  }
  if (rank === undefined || rank === wanted) return
  throw new MismatchError({
    where,
    what: 'the graph takes adapters of another rank',
    expected: `rank ${rank}`,
    got: `rank ${wanted} of ${part}`,
    hint: `Resize the adapter (lowrank resize --rank ${rank}), or make the graph without a fixed rank`,
  })
}
