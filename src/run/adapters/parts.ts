// All parts of an adapter in one graph: the arrays that are fed to the graph, and the head, which is computed outside.

import type { Linear } from '../../model/match/linears.js'
import type { Graph } from '../../onnx/view/graph.js'
import type { SessionBase } from '../graphs.js'
import type { Mixable } from './choice.js'
import type { AdapterHead } from './heads.js'
import type { AdapterSites } from './site-factors.js'

export interface SessionAdapter extends Mixable {
  readonly head: AdapterHead | undefined
  readonly chatTemplate: string | undefined
  readonly prompts: Readonly<Record<string, string>> | undefined
}

export type AdapterParts = AdapterSites & { readonly about: SessionAdapter }

export type NamedParts = AdapterParts & { readonly name: string }

export interface SessionGraph {
  readonly base: SessionBase
  readonly graph: Graph
  readonly linears: readonly Linear[]
}
