// The graphs of a model in one session: which there are besides the one that it is asked first.

import { FileError } from '../base/errors.js'
import type { OnnxModel } from '../formats/onnx/model.js'
import { type GraphRole, roleOf } from '../graph/graph-file.js'
import type { Model } from '../graph/model-folder.js'
import { type Graph, readGraph } from '../graph/view/graph.js'
import type { DecodeImage } from '../images/image.js'
import type { LoraAdapter } from '../lora/adapter.js'
import type { Remote } from '../runtime/rpc.js'
import type { Feeds, OutputOptions, RuntimeTensor } from '../runtime/runtime.js'
import type { Mix } from './adapters/choice.js'
import type { AdapterHead } from './adapters/heads.js'
import type { InferEngine } from './engine.js'

/** Runs one of the model's graphs, with an adapter for each row. */
export type RunGraph = (role: string, feeds: Feeds, mixes: readonly Mix[]) => Promise<Record<string, RuntimeTensor>>

/** The part of a session over a whole model that the ways of reading it need. */
export interface WholeSession {
  readonly model: Model
  /** Reads files of pictures; undefined where nothing does. */
  readonly decodeImage: DecodeImage | undefined
  /** The engine of the first graph. */
  readonly engine: Remote<InferEngine>
  readonly runGraph: RunGraph
  /** Runs the first graph, whatever heads the adapters have. */
  runMain(feeds: Feeds, mixes: readonly Mix[], outputs: readonly string[]): Promise<Record<string, RuntimeTensor>>
  /** Does something with the engine of the first graph: see GraphSession. */
  tried<T>(action: () => Promise<T>): Promise<T>
  /** Throws MismatchError unless runs can choose these adapters. */
  checkMixes(mixes: readonly Mix[]): void
  /** The head that an adapter brings to the first graph. */
  headOf(name: string): AdapterHead | undefined
  /** The chat template that an adapter was trained with; undefined for one that was not trained on chats. */
  chatTemplateOf(mix: Mix): string | undefined
}

/** The part of a model that a session needs. Texts need all of it. */
export interface SessionBase
  extends Pick<Model, 'onnx' | 'runtime'>,
    Partial<Pick<Model, 'config' | 'graphs' | 'openGraph'>> {
  close?(): Promise<void>
}

/** Options of a session that callers inside lowrank can add. */
export interface SessionExtras extends OutputOptions {
  /** Edits the graph before adapters are put into it. */
  edit?: ((graph: Graph) => void) | undefined
  /** Called when all is checked, before the runtime reads weights. */
  beforeOpen?: (() => Promise<void>) | undefined
  /** Reads files of pictures. */
  decodeImage?: DecodeImage | undefined
  /** Opens what `add` is called with. Default: it is an adapter already. */
  openAdapter?: ((adapter: unknown) => Promise<LoraAdapter>) | undefined
  /** Hears that a graph runs in a slower form. Default: console.warn. */
  onWarning?: ((message: string) => void) | undefined
  /** Hears which layers of which adapter are left out. */
  onMissing?: ((adapter: string, layers: readonly string[]) => void) | undefined
}

/** Throws FileError where a model's parts are there without its decoder. */
export function requireDecoder({ graphs, directory }: Pick<Model, 'graphs' | 'directory'>): void {
  const [first] = Object.keys(graphs)
  if (first !== 'embed_tokens' && first !== 'vision_encoder') return
  throw new FileError({
    where: directory.name,
    what: 'no decoder_model_merged.onnx in this folder, which writes the text',
    got: `graphs ${Object.values(graphs).join(', ')}`,
    hint: 'Copy onnx/decoder_model_merged.onnx from where the model came from',
  })
}

/** The role of the graph that a session is asked first. */
export function mainRole({ graphs = {}, onnx }: SessionBase): GraphRole {
  return (Object.keys(graphs)[0] as GraphRole | undefined) ?? roleOf(onnx.fileName)
}

/** The model's other graphs, but for a second decoder that one with branches makes needless. */
export async function otherGraphs(
  model: SessionBase,
): Promise<{ role: GraphRole; onnx: OnnxModel; runtime: SessionBase['runtime'] }[]> {
  const { graphs = {}, onnx: main, runtime } = model
  const isMerged = readGraph(main.proto).nodes.some(({ opType }) => opType === 'If')
  const roles = (Object.keys(graphs) as GraphRole[]).slice(1)
  const others = roles.filter((role) => !(isMerged && role === 'decoder_with_past'))
  return Promise.all(others.map(async (role) => ({ role, onnx: (await model.openGraph?.(role))!, runtime })))
}
