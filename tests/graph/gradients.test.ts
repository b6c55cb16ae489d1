import { describe, expect, it } from 'vitest'
import { BROADCASTING, GRADIENTS, type GradientRule, NON_DIFFERENTIABLE } from '../../src/graph/gradients.js'
import { GRADIENT_CASES, GRAPH_CASES } from './gradient-cases.js'
import { toleranceOf, worstError } from './gradient-check.js'

describe('the table', () => {
  it('has a case for every rule, and no case without one', () => {
    expect([...new Set(GRADIENT_CASES.map(({ op }) => op))].sort()).toEqual(Object.keys(GRADIENTS).sort())
  })

  it('calls no operator both differentiable and not', () => {
    for (const op of NON_DIFFERENTIABLE) expect(GRADIENTS).not.toHaveProperty(op)
    for (const op of BROADCASTING) expect(GRADIENTS).toHaveProperty(op)
  })
})

describe('each rule equals central differences', () => {
  for (const spec of GRADIENT_CASES) {
    it(`${spec.op}: ${spec.note}`, async () => {
      for (const opset of spec.opsets) {
        expect(await worstError(spec, opset), `opset ${opset}`).toBeLessThan(toleranceOf(spec))
      }
    })
  }
})

describe('graphs of several nodes', () => {
  it.each(GRAPH_CASES.map((spec) => [`${spec.op}, ${spec.note}`, spec] as const))('%s', async (_, spec) => {
    for (const opset of [17, 21]) expect(await worstError(spec, opset)).toBeLessThan(toleranceOf(spec))
  })
})

describe('a wrong rule is found', () => {
  const wrong = {
    'a flipped sign': (g, value) => g.neg(value),
    'a factor of 1.01': (g, value) => g.mul(value, g.float(1.01)),
  } satisfies Record<string, (g: Parameters<GradientRule>[0]['g'], value: string) => string>
  const first = new Map([...GRADIENT_CASES].reverse().map((spec) => [spec.op, spec]))
  for (const [fault, spoil] of Object.entries(wrong)) {
    it.each([...first.values()].map((spec) => [spec.op, spec] as const))(`${fault} in %s`, async (op, spec) => {
      const rule: GradientRule = (context) =>
        GRADIENTS[op](context).map((thunk) => thunk && (() => spoil(context.g, thunk())))
      expect(await worstError(spec, spec.opsets[0], rule)).toBeGreaterThan(toleranceOf(spec))
    })
  }
})
