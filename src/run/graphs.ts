// The graphs of a model in a session: which of them runs by default, and which others there are.

import { FileError } from '../core/base/errors.js'
import type { RunAdapter } from '../lora/run-adapter.js'
import { type GraphRole, roleOf } from '../model/graph-file.js'
import type { DecodeImage } from '../model/images/image.js'
import type { Model } from '../model/model-folder.js'
import type { Prompts } from '../model/sentence-modules.js'
import type { OnnxModel } from '../onnx/format/model.js'
import type { Remote } from '../onnx/runtime/rpc.js'
import type { Feeds, OutputOptions, RuntimeTensor } from '../onnx/runtime/runtime.js'
import { type Graph, readGraph } from '../onnx/view/graph.js'
import type { Mix } from './adapters/choice.js'
import type { AdapterHead } from './adapters/heads.js'
import type { InferEngine } from './engine.js'

export interface WholeSession {
  readonly model: Model
  readonly decodeImage: DecodeImage | undefined
  readonly engine: Remote<InferEngine>
  /** Runs a graph. `role` undefined: the first graph. */
  runGraph(
    role: string | undefined,
    feeds: Feeds,
    mixes: readonly Mix[],
    outputs?: readonly string[],
  ): Promise<Record<string, RuntimeTensor>>
  tried<T>(action: () => Promise<T>): Promise<T>
  checkMixes(mixes: readonly Mix[]): void
  headOf(name: string): AdapterHead | undefined
  chatTemplateOf(mix: Mix): string | undefined
  promptsOf(mix: Mix): Prompts | undefined
  warnOnce(message: string): void
}

export interface SessionBase
  extends Pick<Model, 'onnx' | 'runtime'>,
    Partial<Pick<Model, 'config' | 'graphs' | 'onnxPath' | 'name' | 'openGraph'>> {
  close?(): Promise<void>
}

export interface SessionExtras extends OutputOptions {
  edit?: ((graph: Graph) => void) | undefined
  decodeImage?: DecodeImage | undefined
  /** Opens the argument of `add`. Default: the argument is an adapter already. */
  openAdapter?: ((adapter: unknown) => Promise<RunAdapter>) | undefined
  /** Called if a graph runs in a slower form, or an adapter belongs to another base. Default: console.warn. */
  onWarning?: ((message: string) => void) | undefined
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

/** Returns the model's other graphs. A second decoder is left out if the first has branches for both uses. */
export async function otherGraphs(
  model: SessionBase,
): Promise<{ role: GraphRole; onnx: OnnxModel; runtime: SessionBase['runtime'] }[]> {
  const { graphs = {}, onnx: main, runtime } = model
  const isMerged = readGraph(main).nodes.some(({ opType }) => opType === 'If')
  const roles = (Object.keys(graphs) as GraphRole[]).slice(1)
  const others = roles.filter((role) => !(isMerged && role === 'decoder_with_past'))
  return Promise.all(others.map(async (role) => ({ role, onnx: (await model.openGraph?.(role))!, runtime })))
}
