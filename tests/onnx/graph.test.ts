import { describe, expect, it } from 'vitest'
import { FormatError, StateError } from '../../src/api/node.js'
import { Builder } from '../../src/onnx/view/builder.js'
import { addInput, addOutput, DataType, emptyGraph } from './toolkit.js'

function chain() {
  const graph = emptyGraph(17)
  const g = new Builder(graph, 'test')
  const x = addInput(graph, 'x', DataType.FLOAT)
  const a = g.op('Neg', [x], {}, 'a')
  const b = g.op('Exp', [a], {}, 'b')
  const c = g.add(b, a)
  addOutput(graph, c, DataType.FLOAT)
  return { graph, g, x, a, b, c }
}

describe('sort', () => {
  it('puts makers before readers, and leaves what is in order', () => {
    const { graph } = chain()
    const ordered = [...graph.nodes]
    graph.sort()
    expect(graph.nodes).toEqual(ordered)
    graph.nodes.reverse()
    graph.sort()
    expect(graph.nodes).toEqual(ordered)
  })

  it('refuses a circle, naming a node of it', () => {
    const { graph, a, c } = chain()
    graph.setInputs(graph.producer(a)!, [c])
    expect(() => graph.sort()).toThrow(FormatError)
    expect(() => graph.sort()).toThrow(/^node test\/\w+ \(\w+\): the graph has a circle/)
  })
})

describe('edits keep makers and readers known', () => {
  it('replaceUses', () => {
    const { graph, g, x, a, b, c } = chain()
    expect(graph.consumers(a)).toHaveLength(2)
    graph.replaceUses(a, x)
    expect(graph.consumers(a)).toEqual([])
    expect(graph.consumers(x).map(({ opType }) => opType)).toEqual(['Neg', 'Exp', 'Add'])
    expect(graph.producer(c)?.input).toEqual([b, x])
    const late = g.neg(a)
    expect(graph.consumers(a)).toEqual([graph.producer(late)])
  })

  it('rename', () => {
    const { graph, a, c } = chain()
    const [maker, readers] = [graph.producer(a), graph.consumers(a)]
    graph.rename(a, 'renamed')
    expect(graph.producer('renamed')).toBe(maker)
    expect(graph.consumers('renamed')).toEqual(readers)
    expect(graph.producer(c)?.input).toContain('renamed')
    expect(() => graph.rename('x', 'y')).toThrow(StateError)
  })

  it('setOutput', () => {
    const { graph, a, b } = chain()
    const node = graph.producer(a)!
    graph.setOutput(node, 0, 'renamed')
    expect(graph.producer('renamed')).toBe(node)
    expect(graph.producer(a)).toBeUndefined()
    expect(graph.consumers(a)).toContain(graph.producer(b))
  })
})
