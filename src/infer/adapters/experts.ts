// Adapted parameters (target_parameters) in graphs that compute each expert by layers of its own, as those of mobius.

import type { Matrix } from '../../base/tensor.js'
import { modelType } from '../../families/families.js'
import { nameOfModule } from '../../graph/match/module-names.js'
import type { LoraAdapter } from '../../lora/adapter.js'
import { type ExpertLora, expertFactors } from '../../lora/kinds/experts.js'
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
  const { module, experts, d } = part
  const parameter = part.name.slice(module.length + 1)
  const has = (projection: string) => nameOfModule(names, `${module}.0.${projection}`) !== undefined
  const projections = has(parameter) ? [parameter] : (PARTS[parameter] ?? [])
  if (projections.length === 0 || !projections.every(has)) return undefined
  // OpenAI's models store gate and up in turn, others one after the other.
  const inTurn = modelType(type).hasInputMajorExperts === true
  return Array.from({ length: experts }, (_, expert) => {
    const [a, b] = expertFactors(part, expert)
    const count = projections.length
    return projections.map((projection, i) => {
      const isOwn = (row: number) => (inTurn ? row % count : Math.floor((row * count) / d)) === i
      return linearValues(`${module}.${expert}.${projection}`, part.config, a, chosenRows(b, isOwn))
    })
  }).flat()
}

function chosenRows({ data, shape: [, columns] }: Matrix, isChosen: (row: number) => boolean): Matrix {
  const chosen = data.filter((_, i) => isChosen(Math.floor(i / columns))) as Matrix['data']
  return { data: chosen, shape: [chosen.length / columns, columns] }
}
