// The table of families of graphs by their inputs. To add a family, add an entry: nothing else names families.

import type { Graph } from '../../onnx/view/graph.js'
import { VECTORS } from './tokens.js'

export const HIDDEN_STATES = 'encoder_hidden_states'
export const STATES_MASK = 'encoder_attention_mask'

/** Prefix of the decoder's inputs in a graph that joins encoder and decoder. */
export const OF_DECODER = 'decoder_'

/** Sounds as a model reads them: (batch, bands, times). */
export const FEATURES = 'input_features'

/** Pictures: (batch, 3, height, width). */
export const PIXELS = 'pixel_values'

export interface InputFamily {
  readonly name: string
  has(inputs: ReadonlySet<string>): boolean
  readonly reads: 'tokens' | 'vectors' | 'pictures' | 'sounds'
  /** True if it reads whole texts and continues none. */
  readonly isEncoder?: boolean
  /** Set for decoders that read an encoder's output: the encoder is a separate graph, or part of this one. */
  readonly encoderGraph?: 'separate' | 'joined'
}

/** Families of inputs. The first family that matches is taken. */
const FAMILIES: readonly InputFamily[] = [
  { name: 'encoder-decoder', has: (inputs) => inputs.has(HIDDEN_STATES), reads: 'tokens', encoderGraph: 'separate' },
  { name: 'joined', has: (inputs) => inputs.has(`${OF_DECODER}input_ids`), reads: 'tokens', encoderGraph: 'joined' },
  { name: 'features', has: (inputs) => inputs.has(FEATURES), reads: 'sounds' },
  { name: 'pixels', has: (inputs) => inputs.has(PIXELS), reads: 'pictures' },
  {
    name: 'tokens',
    has: (inputs) =>
      inputs.has('input_ids') && (inputs.has('position_ids') || [...inputs].some((name) => name.startsWith('past'))),
    reads: 'tokens',
  },
  { name: 'encoder', has: (inputs) => inputs.has('input_ids'), reads: 'tokens', isEncoder: true },
  { name: 'vectors', has: (inputs) => inputs.has(VECTORS), reads: 'vectors' },
]

/** Returns undefined for other graphs, such as an embedding alone. */
export function inputFamily({ inputs }: Pick<Graph, 'inputs'>): InputFamily | undefined {
  const names = new Set(inputs.map(({ name }) => name))
  return FAMILIES.find((family) => family.has(names))
}
