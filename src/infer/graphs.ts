// The graphs of a model in one session: which there are besides the one that it is asked first.

import { FileError } from '../base/errors.js'
import type { OnnxModel } from '../formats/onnx/model.js'
import { type GraphRole, roleOf } from '../graph/graph-file.js'
import type { Model } from '../graph/model-folder.js'
import { type Graph, readGraph } from '../graph/view/graph.js'
import type { DecodeImage } from '../images/image.js'
import type { RunAdapter } from '../lora/run-adapter.js'
import type { Remote } from '../runtime/rpc.js'
import type { Feeds, OutputOptions, RuntimeTensor } from '../runtime/runtime.js'
import type { Mix } from './adapters/choice.js'
import type { AdapterHead } from './adapters/heads.js'
import type { InferEngine } from './engine.js'

export interface WholeSession {
  readonly model: Model
  readonly decodeImage: DecodeImage | undefined
  readonly engine: Remote<InferEngine>
  /** Runs a graph; undefined: the first one. */
  runGraph(
    role: string | undefined,
    feeds: Feeds,
    mixes: readonly Mix[],
    outputs?: readonly string[],
  ): Promise<Record<string, RuntimeTensor>>
  readonly graphs: readonly string[]
  tried<T>(action: () => Promise<T>): Promise<T>
  /** `readsAll`: they read every token, which an activated LoRA does not. */
  checkMixes(mixes: readonly Mix[], readsAll?: boolean): void
  /** The tokens from which on a mix counts; undefined for one that always does. */
  invocationOf(mix: Mix): readonly number[] | undefined
  headOf(name: string): AdapterHead | undefined
  chatTemplateOf(mix: Mix): string | undefined
}

export interface SessionBase
  extends Pick<Model, 'onnx' | 'runtime'>,
    Partial<Pick<Model, 'config' | 'graphs' | 'onnxPath' | 'name' | 'openGraph'>> {
  close?(): Promise<void>
}

export interface SessionExtras extends OutputOptions {
  edit?: ((graph: Graph) => void) | undefined
  beforeOpen?: (() => Promise<void>) | undefined
  decodeImage?: DecodeImage | undefined
  /** Opens what `add` is called with. Default: it is an adapter already. */
  openAdapter?: ((adapter: unknown) => Promise<RunAdapter>) | undefined
  /** Hears of graphs in a slower form, and of adapters of another base. Default: console.warn. */
  onWarning?: ((message: string) => void) | undefined
  /** Hears which layers of which adapter are left out. */
  onMissing?: ((adapter: string, layers: readonly string[]) => void) | undefined
}

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

export function mainRole({ graphs = {}, onnx }: SessionBase): GraphRole {
  return (Object.keys(graphs)[0] as GraphRole | undefined) ?? roleOf(onnx.fileName)
}

/** The model's other graphs, but for a second decoder that one with branches makes needless. */
export async function otherGraphs(
  model: SessionBase,
): Promise<{ role: GraphRole; onnx: OnnxModel; runtime: SessionBase['runtime'] }[]> {
  const { graphs = {}, onnx: main, runtime } = model
  const isMerged = readGraph(main).nodes.some(({ opType }) => opType === 'If')
  const roles = (Object.keys(graphs) as GraphRole[]).slice(1)
  const others = roles.filter((role) => !(isMerged && role === 'decoder_with_past'))
  return Promise.all(others.map(async (role) => ({ role, onnx: (await model.openGraph?.(role))!, runtime })))
}
