// Joins two graphs: an encoder and its decoder, or an embedding and the decoder that reads its vectors.

import { UnsupportedError } from '../../core/base/errors.js'
import { modelType } from '../../model/families/families.js'
import { takeBranchWithoutCache } from '../../model/inputs/cache.js'
import { ENCODER_FILES } from '../../model/inputs/encoder-decoder.js'
import { HIDDEN_STATES, inputFamily, OF_DECODER, STATES_MASK } from '../../model/inputs/family.js'
import { VECTORS } from '../../model/inputs/tokens.js'
import { findLinears, logitsName, SCOPES, scopesIn } from '../../model/match/linears.js'
import type { Model } from '../../model/model-folder.js'
import { copyMessage, mapTensors } from '../../onnx/format/messages.js'
import { OnnxModel } from '../../onnx/format/model.js'
import {
  type AttributeProto,
  externalTensor,
  type GraphProto,
  isExternal,
  type ModelProto,
  type NodeProto,
  weightRange,
} from '../../onnx/format/tensors.js'
import { Graph, readGraph } from '../../onnx/view/graph.js'
import { raiseOpset } from '../../onnx/view/opset.js'
import { dropEmptyCache } from './without-cache.js'

/**
 * Joins the graphs of a model. Its inputs are the encoder's and, prefixed by `decoder_`, the decoder's. A decoder that
 * reads vectors gets `input_ids`, and {@link VECTORS} becomes an inner value, as do the inputs of each layer that
 * Gemma 3n has. Layers get their names in the whole model. Other models stay unchanged.
 */
export async function joinGraphs(model: Model): Promise<Model> {
  const { inputs } = readGraph(model.onnx)
  if (model.graphs.embed_tokens !== undefined && inputs.some(({ name }) => name === VECTORS)) {
    return { ...model, onnx: withEmbedding(await model.openGraph('embed_tokens'), model) }
  }
  if (model.graphs.encoder === undefined || model.graphs.decoder === undefined) return model
  if (inputFamily(readGraph(model.onnx))?.encoderGraph !== 'separate') return model
  return { ...model, onnx: joined(await model.openGraph('encoder'), model.onnx) }
}

function joined(encoder: OnnxModel, decoder: OnnxModel): OnnxModel {
  const back = new Graph(decoder.proto)
  takeBranchWithoutCache(back)
  raiseOpset(back)
  back.outputs = back.outputs.filter(({ name }) => name === logitsName(back))
  dropEmptyCache(back)
  back.prune({ inputs: true })

  const front = new Graph(encoder.proto)
  raiseOpset(front)
  const states = front.outputs.find(({ name }) => name === 'last_hidden_state') ?? front.outputs[0]
  front.outputs = [states]
  front.prune()

  const ownInputs = new Set(back.inputs.map(({ name }) => name))
  const taken = new Set<string>()
  const last = renameAll(back.toModel(), {
    value(name) {
      const isOwn = ownInputs.has(name) && name !== HIDDEN_STATES
      const renamed = !isOwn ? name : name === STATES_MASK ? 'attention_mask' : `${OF_DECODER}${name}`
      taken.add(renamed)
      return renamed
    },
    node: () => ({}),
  })
  const inputs = new Set(front.inputs.map(({ name }) => name))
  const within = encoderModule(front, back, encoder.name)
  // The graphs may have equal names of nodes, which ONNX Runtime refuses.
  const nodeNames = new Set(last.graph!.node.map(({ name }) => name))
  const first = renameAll(front.toModel(), {
    value(name) {
      if (name === states.name) return HIDDEN_STATES
      if (inputs.has(name)) return name
      const moved = inModule(name, within)
      return taken.has(moved) ? `${moved}/of encoder` : moved
    },
    node(node) {
      const moved = /[/.]/.test(node.name) ? inModule(node.name, within) : node.name
      const metadataProps = scopesWithin(node, within === '' ? (name) => name : (name) => `${within}.${name}`)
      return { name: moved !== '' && nodeNames.has(moved) ? `${moved}_of_encoder` : moved, metadataProps }
    },
  })
  return oneModel(encoder, first, decoder, last, [HIDDEN_STATES])
}

/** Operators of embeddings that are equal in all operator sets. */
const LASTING = new Set(['Cast', 'Constant', 'Gather', 'Identity', 'Mul'])

function withEmbedding(embedding: OnnxModel, { onnx: decoder, config }: Model): OnnxModel {
  const back = new Graph(decoder.proto)
  takeBranchWithoutCache(back)
  raiseOpset(back)
  const { languageModule: module = 'language_model' } = modelType(config.model_type)
  const outer = new Set([...back.inputs, ...back.outputs].map(({ name }) => name))
  const inner = /^(\/?)(?:language_model[/.])?model([/.])(?!language_model|text_model)/
  const whole = (name: string) => name.replace(inner, `$1model$2${module}$2`)
  const taken = new Set<string>()
  const last = renameAll(back.toModel(), {
    value(name) {
      const renamed = outer.has(name) ? name : whole(name)
      taken.add(renamed)
      return renamed
    },
    node: (node) => ({ name: whole(node.name), metadataProps: scopesWithin(node, whole) }),
  })
  const front = new Graph(embedding.proto)
  raiseOpset(front)
  const vectors = front.outputs.find(({ name }) => name === VECTORS) ?? front.outputs[0]
  front.outputs = front.outputs.filter((output) => output === vectors || outer.has(output.name))
  front.prune()
  const links = new Map(front.outputs.map((output) => [output.name, output === vectors ? VECTORS : output.name]))
  const first = renameAll(front.toModel(), {
    value: (name) => links.get(name) ?? (taken.has(name) ? `${name}/of embedding` : name),
    node: ({ name }) => ({ name: `/model/${module}/embed_tokens/${name.replaceAll('/', '.')}` }),
  })
  const isLasting = front.nodes.every(({ opType, domain }) => domain !== '' || LASTING.has(opType))
  const opsetImport = first.opsetImport.filter(({ domain }) => !isLasting || domain !== '')
  return oneModel(embedding, copyMessage(first, { opsetImport }), decoder, last, [...links.values()])
}

function oneModel(
  front: OnnxModel,
  first: ModelProto,
  back: OnnxModel,
  last: ModelProto,
  links: readonly string[],
): OnnxModel {
  const files = new Map(back.files)
  for (const [location, file] of front.files) files.set(ENCODER_FILES + location, file)
  const moved = mapTensors(first, (tensor) => {
    if (!isExternal(tensor)) return tensor
    const range = weightRange(tensor, front.name)
    return externalTensor(tensor, { ...range, location: ENCODER_FILES + range.location })
  })
  return new OnnxModel(back.name, back.fileName, together(moved, last, back.name, links), files)
}

/** Returns the encoder's module in the whole model; '' if its layers are already named so. */
function encoderModule(front: Graph, back: Graph, where: string): string {
  const modulesOf = (graph: Graph) => findLinears(graph).map(({ name }) => name.split('.'))
  if (modulesOf(front).some((segments) => segments.includes('encoder'))) return ''
  const segments = modulesOf(back).find((names) => names.includes('decoder'))
  if (segments !== undefined) return [...segments.slice(0, segments.indexOf('decoder')), 'encoder'].join('.')
  throw new UnsupportedError({
    where,
    what: 'the layers of encoder and decoder cannot be told apart, because no name of a layer says that it is of the decoder',
    hint: 'Export the model with optimum',
  })
}

/** Puts a module in front of a name: with slashes if the name is a path, with dots if the name is a tensor's. */
function inModule(name: string, module: string): string {
  if (module === '') return name
  if (name.startsWith('/')) return `/${module.replaceAll('.', '/')}${name}`
  return name.includes('.') && !/[/:]/.test(name) ? `${module}.${name}` : `${module.replaceAll('.', '/')}/${name}`
}

function scopesWithin({ metadataProps }: NodeProto, place: (module: string) => string): NodeProto['metadataProps'] {
  return metadataProps.map((entry) => {
    if (entry.key !== SCOPES) return entry
    const names = scopesIn(entry.value)
    const moved = names.map((name, i) => (name === '' || i === names.length - 1 ? name : place(name)))
    return copyMessage(entry, { value: `[${moved.map((name) => `'${name}'`).join(', ')}]` })
  })
}

function together(first: ModelProto, last: ModelProto, where: string, links: readonly string[]): ModelProto {
  const [front, back] = [first.graph!, last.graph!]
  const versions = new Map(last.opsetImport.map((entry) => [entry.domain, entry]))
  for (const entry of first.opsetImport) {
    const version = versions.get(entry.domain)
    if (version !== undefined && version.version !== entry.version) {
      throw new UnsupportedError({
        where,
        what: `its two graphs use different operator sets ${entry.domain}`,
        got: `${entry.version} and ${version.version}`,
        hint: 'Export both with the same program',
      })
    }
    versions.set(entry.domain, entry)
  }
  const functionName = ({ domain, name, overload }: ModelProto['functions'][number]) => [domain, name, overload].join()
  const functions = new Map([...first.functions, ...last.functions].map((entry) => [functionName(entry), entry]))
  const given = new Set([...links, ...front.input.map(({ name }) => name)])
  return copyMessage(last, {
    irVersion: BigInt(Math.max(Number(first.irVersion), Number(last.irVersion))),
    opsetImport: [...versions.values()],
    functions: [...functions.values()],
    graph: copyMessage(back, {
      node: [...front.node, ...back.node],
      initializer: [...front.initializer, ...back.initializer],
      input: [...front.input, ...back.input.filter(({ name }) => !given.has(name))],
      valueInfo: [...front.valueInfo, ...back.valueInfo],
    }),
  })
}

/** Gives new names. No two values may get the same name. */
export interface Renaming {
  value(name: string): string
  node(node: NodeProto): Partial<NodeProto>
}

export function renameAll(model: ModelProto, renaming: Renaming): ModelProto {
  return model.graph === undefined ? model : copyMessage(model, { graph: renamedGraph(model.graph, renaming) })
}

function renamedGraph(graph: GraphProto, renaming: Renaming): GraphProto {
  const { value } = renaming
  const named = <T extends { name: string }>(list: readonly T[]) =>
    list.map((entry) => copyMessage(entry, { name: value(entry.name) } as Partial<T>))
  return copyMessage(graph, {
    node: graph.node.map((node) => renamedNode(node, renaming)),
    initializer: named(graph.initializer),
    input: named(graph.input),
    output: named(graph.output),
    valueInfo: named(graph.valueInfo),
    quantizationAnnotation: [],
  })
}

function renamedNode(node: NodeProto, renaming: Renaming): NodeProto {
  const nameOf = (name: string) => (name === '' ? '' : renaming.value(name))
  const inside = (attribute: AttributeProto) => {
    const { g, graphs } = attribute
    if (g === undefined && graphs.length === 0) return attribute
    return copyMessage(attribute, {
      g: g && renamedGraph(g, renaming),
      graphs: graphs.map((subgraph) => renamedGraph(subgraph, renaming)),
    })
  }
  return copyMessage(node, {
    ...renaming.node(node),
    input: node.input.map(nameOf),
    output: node.output.map(nameOf),
    attribute: node.attribute.map(inside),
  })
}
