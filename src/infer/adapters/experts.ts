// Adapted parameters (target_parameters) in graphs that compute each expert by layers of its own, as mobius writes them.

import type { Matrix } from '../../base/tensor.js'
import { modelType } from '../../families/families.js'
import { nameOfModule } from '../../graph/match/module-names.js'
import { rowsOf } from '../../linalg/product.js'
import type { LoraAdapter } from '../../lora/adapter.js'
import { type ExpertLora, expertColumns } from '../../lora/kinds/experts.js'
import { isPlain, type LinearValues, linearValues, plainAdapter, type RunAdapter } from '../../lora/run-adapter.js'

const PARTS: Readonly<Record<string, readonly string[]>> = { gate_up_proj: ['gate_proj', 'up_proj'] }

/** The adapter with layers in the place of its parameters; unchanged if a parameter has no such layers in the graph. */
export function expertsAsLayers(
  adapter: LoraAdapter,
  modules: Iterable<string>,
  config: Readonly<Record<string, unknown>>,
): RunAdapter {
  const names = new Set(modules)
  const layers = adapter.parts('parameter').map((part) => layersOf(part, names, config))
  const others = adapter.only(
    new Set(adapter.parts().flatMap(({ kind, name }) => (kind === 'parameter' ? [] : [name]))),
  )
  if (layers.includes(undefined) || !isPlain(others)) return adapter
  return plainAdapter(adapter, [...others.parts('linear'), ...(layers as LinearValues[][]).flat()])
}

function layersOf(
  part: ExpertLora,
  names: ReadonlySet<string>,
  { model_type: type }: Readonly<Record<string, unknown>>,
): LinearValues[] | undefined {
  const { module, experts, weightA, weightB } = part
  const parameter = part.name.slice(module.length + 1)
  const has = (projection: string) => nameOfModule(names, `${module}.0.${projection}`) !== undefined
  const projections = has(parameter) ? [parameter] : (PARTS[parameter] ?? [])
  if (projections.length === 0 || !projections.every(has)) return undefined
  // OpenAI's models store gate and up in turn, others one after the other.
  const inTurn = modelType(type).hasInputMajorExperts === true
  return Array.from({ length: experts }, (_, expert) => {
    const [a, b] = [rowsOf(weightA, expert, experts), expertColumns(weightB, expert, experts)]
    return projections.map((projection, i) => {
      const rows = inTurn ? everyOther(b, i, projections.length) : rowsOf(b, i, projections.length)
      return linearValues(`${module}.${expert}.${projection}`, part.config, a, rows)
    })
  }).flat()
}

/** The rows `first`, `first` + `step`, … */
function everyOther({ data, shape: [rows, columns] }: Matrix, first: number, step: number): Matrix {
  const chosen = data.filter((_, i) => Math.floor(i / columns) % step === first) as Matrix['data']
  return { data: chosen, shape: [rows / step, columns] }
}
