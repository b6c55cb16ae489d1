// What a comparison's page shows: the same page as an inspection's, with other columns.

import type { DiffReport } from '../../index.js'
import { digits, type PageData, type PageLayer } from './data.js'
import { stacksOf } from './stacks.js'

export function diffPageData(report: DiffReport, a: string, b: string): PageData {
  const layers = report.kind === 'adapters' ? adapterLayers(report) : tensorLayers(report)
  const isAdapters = report.kind === 'adapters'
  return {
    facts: [
      ['a', a],
      ['b', b],
      ['differ by', `${(100 * report.relativeChange).toPrecision(3)} % of a`],
      ['most', report.topMovers.slice(0, 5).join(', ') || 'nothing differs'],
    ],
    problems: [],
    warnings: [
      ...report.onlyA.map((name) => `only in a: ${name}`),
      ...report.onlyB.map((name) => `only in b: ${name}`),
    ].slice(0, 20),
    notes: [],
    layers,
    stacks: stacksOf(layers.map(({ name }) => name)),
    columns: isAdapters
      ? [
          ['kind', 'kind'],
          ['shape', 'shape'],
        ]
      : [['shape', 'shape']],
    measures: isAdapters
      ? [
          ['normDifference', '‖ΔB − ΔA‖'],
          ['relativeChange', '‖ΔB − ΔA‖/‖ΔA‖'],
          ['outputAngle', 'output angle'],
          ['inputAngle', 'input angle'],
          ['normA', '‖ΔA‖'],
          ['normB', '‖ΔB‖'],
        ]
      : [
          ['relativeChange', '‖b − a‖/‖a‖'],
          ['normDifference', '‖b − a‖'],
          ['normA', '‖a‖'],
        ],
    curves: 'ΔB − ΔA',
  }
}

function adapterLayers({ layers }: DiffReport & { kind: 'adapters' }): PageLayer[] {
  return layers.map(({ name, kind, shape, outputAngles, inputAngles, singularValues, ...numbers }) => ({
    name,
    kind,
    shape: shape.join('×'),
    outputAngle: digits(meanOf(outputAngles)),
    inputAngle: digits(meanOf(inputAngles)),
    normDifference: digits(numbers.normDifference),
    relativeChange: digits(numbers.relativeChange),
    normA: digits(numbers.normA),
    normB: digits(numbers.normB),
    singularValues: singularValues.map((value) => digits(value) ?? 0),
  }))
}

function tensorLayers({ tensors }: DiffReport & { kind: 'checkpoints' }): PageLayer[] {
  return tensors.map(({ name, shape, normA, normDifference, relativeChange }) => ({
    name,
    shape: shape.join('×'),
    normA: digits(normA),
    normDifference: digits(normDifference),
    relativeChange: digits(relativeChange),
    singularValues: [],
  }))
}

/** NaN of no angles. */
export function meanOf(angles: readonly number[]): number {
  return angles.reduce((sum, angle) => sum + angle, 0) / angles.length
}
