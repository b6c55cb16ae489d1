// Pipelines over lowrank's session. Each call gets a copy of the model that is bound to its adapter, so calls may
// overlap.

import { ConfigError, UnsupportedError } from '../../core/base/errors.js'
import { checkArgument, isObject } from '../../core/base/options.js'
import { meantBy } from '../../core/base/words.js'
import { logitsName } from '../../model/match/linears.js'
import { TensorProto_DataType as DataType } from '../../onnx/format/gen/onnx_pb.js'
import type { Feeds } from '../../onnx/runtime/runtime.js'
import { Builder } from '../../onnx/view/builder.js'
import { type Graph, readGraph } from '../../onnx/view/graph.js'
import { ADAPTER_CHOICE, type AdapterChoice, mixesOf } from '../../run/adapters/choice.js'
import { countsKeysFromLeft } from '../../run/generate/text-graph.js'
import type { SessionBase } from '../../run/graphs.js'
import { ModelSession } from '../../run/model-session.js'
import type { AdapterSession } from '../../run/session.js'
import { type CallChoice, metadataOf, type NamedGraph, type SharedSession, sessionsFor } from './call-session.js'
import type { Class, PipelineInstance, PreTrainedModel } from './module.js'
import { PipelineCache } from './pipeline-cache.js'

/** Options for each call of a pipeline with adapters, in addition to the options of transformers.js. */
export interface AdapterCallOptions {
  /**
   * Name of the adapter. `{ a: 0.5, b: 1 }` adds several adapters, each with its weight. A list has one such choice for
   * each text of a batch. null is the base model alone. Default null.
   */
  adapter?: AdapterChoice | readonly AdapterChoice[] | undefined
  /** Options of transformers.js: max_new_tokens, streamer, pooling, top_k, … */
  [option: string]: unknown
}

/** Members of a pipeline with adapters, in addition to its call. */
export interface AdapterPipelineParts {
  /** The task of the pipeline. */
  readonly task: string
  /**
   * The model of transformers.js. You can call it, or its `generate`, with the option `adapter`; without it they run
   * the base model.
   */
  readonly model: unknown
  /** The tokenizer of transformers.js. */
  readonly tokenizer: unknown
  /** The session, to which adapters are added and from which they are removed. Disposing the pipeline disposes it. */
  readonly session: Pick<AdapterSession, 'adapters' | 'add' | 'remove'>
  /** Frees the model and its adapters. */
  dispose(): Promise<void>
}

/** Opens the session that all calls of a pipeline share. Disposing it closes the model. */
export async function openShared(
  model: SessionBase,
  settings: Parameters<typeof ModelSession.open>[1],
  config: SharedSession['config'],
): Promise<SharedSession> {
  const graph = readGraph(model.onnx)
  const { device } = config
  const { edit, check: checkPadding } = paddingPlan(graph, device)
  const session = await ModelSession.open(model, { ...settings, device }, true, { keepsTensors: true, edit })
  return { session, graphs: graphsOf(session), graph, cache: new PipelineCache(), config, checkPadding }
}

function graphsOf(session: ModelSession): NamedGraph[] {
  const named = (name: string, role?: string): NamedGraph => {
    const { graph, outputNames } = session.graphNamed(role)
    return { role, name, inputMetadata: metadataOf(graph), outputNames }
  }
  if (session.graphs.length === 1) return [named('model')]
  return [named('model', 'encoder'), named('decoder_model_merged', 'decoder')]
}

/** Makes a pipeline with adapters from a transformers.js pipeline whose model already runs lowrank's session. */
export function adapterPipeline(
  base: PipelineInstance,
  shared: SharedSession,
): ((input: unknown, options?: AdapterCallOptions) => Promise<unknown>) & AdapterPipelineParts {
  const { task, tokenizer, processor } = base
  const { session } = shared
  const call = async (...given: unknown[]): Promise<unknown> => {
    const inputs = given.slice(0, given.findLastIndex((value) => value !== undefined) + 1)
    // Some tasks take labels between the input and the options.
    const options = inputs.length > 1 && !Array.isArray(inputs.at(-1)) && isObject(inputs.at(-1)) ? inputs.pop() : {}
    const { adapter, rest } = choiceOf(options as AdapterCallOptions, shared)
    session.checkOpen()
    const model = boundModel(base.model, shared, adapter)
    if (task.endsWith('-classification')) checkLabels(shared, adapter, task)
    const Pipeline = base.constructor as Class<typeof call>
    return new Pipeline({ task, model, tokenizer, processor })(...inputs, rest)
  }
  return Object.assign(call, {
    task,
    model: choosingModel(base.model, shared),
    tokenizer,
    session,
    dispose: () => session.dispose(),
  })
}

/** Takes the adapter of a call from its options. Refuses options that transformers.js would silently ignore. */
function choiceOf(options: Readonly<Record<string, unknown>>, { session }: SharedSession) {
  const { adapter, ...rest } = options
  if (adapter !== undefined) checkArgument(adapter, ADAPTER_CHOICE, 'adapter')
  for (const [name, value] of Object.entries(rest)) {
    if (value === undefined || value === null || GENERATION.includes(name)) continue
    const hint = Object.hasOwn(IDLE, name) && value !== 1 ? IDLE[name] : undefined
    if (hint !== undefined)
      throw new UnsupportedError({ where: name, what: 'transformers.js does nothing with it', hint })
    const meant = meantBy(name, ['adapter', ...GENERATION])
    if (meant === undefined || KNOWN.includes(name) || session.inputNames.includes(name)) continue
    throw new ConfigError({ where: name, what: 'there is no such option', hint: `Did you mean ${meant}?` })
  }
  return { adapter: adapter as CallChoice, rest }
}

/** Options that transformers.js accepts but ignores, each with an option that has the effect. */
const IDLE: Readonly<Record<string, string>> = {
  signal: 'Give stopping_criteria: an InterruptableStoppingCriteria of transformers.js',
  stop_strings: "Use lowrank's own session: session.generate(prompt, { stop })",
  num_return_sequences: 'Call the pipeline once for each text',
  num_beams: 'There is no beam search: leave it out',
}

/** Option names of transformers.js's GenerationConfig and its call, with which misspelled names are compared. */
const GENERATION = `max_length max_new_tokens min_length min_new_tokens do_sample temperature top_k top_p typical_p
  repetition_penalty no_repeat_ngram_size bad_words_ids suppress_tokens begin_suppress_tokens forced_decoder_ids
  forced_bos_token_id forced_eos_token_id pad_token_id bos_token_id eos_token_id decoder_start_token_id guidance_scale
  streamer stopping_criteria logits_processor return_full_text use_cache output_attentions output_scores
  return_dict_in_generate`.split(/\s+/)

/** Options of other tasks and of tokenizers, which do not count as misspellings of the options above. */
const KNOWN = 'normalize pooling topk num_return_sequences num_beams tokenizer_encode_kwargs max_time'.split(' ')

/** Makes the model that callers get: its call and `generate` choose an adapter in the same way as the pipeline. */
function choosingModel(model: PreTrainedModel, shared: SharedSession): PreTrainedModel {
  const choose = (inputs: unknown) => {
    const { adapter, rest } = choiceOf(isObject(inputs) ? inputs : {}, shared)
    shared.session.checkOpen()
    return { model: boundModel(model, shared, adapter) as unknown as Methods, rest }
  }
  return new Proxy(model, {
    apply(_, __, [inputs, ...more]: unknown[]) {
      const chosen = choose(inputs)
      return chosen.model(chosen.rest, ...more)
    },
    get(target, name) {
      const value: unknown = Reflect.get(target, name)
      if (!CALLS.has(name) || typeof value !== 'function') return value
      return (inputs: unknown, ...more: unknown[]) => {
        const chosen = choose(inputs)
        return chosen.model[name as string](chosen.rest, ...more)
      }
    },
  })
}

/** Methods of a model that run it, with the inputs as their first argument. */
const CALLS: ReadonlySet<string | symbol> = new Set(['generate', 'forward', '_call'])

interface Methods {
  (...args: unknown[]): unknown
  readonly [name: string]: (...args: unknown[]) => unknown
}

/** Returns a copy of the model that runs the session of a call. */
function boundModel(model: PreTrainedModel, shared: SharedSession, choice: CallChoice): PreTrainedModel {
  const sessions = sessionsFor(shared, choice)
  const config = labeledConfig(model.config, shared, choice)
  const Model = model.constructor as Class<PreTrainedModel>
  return Object.assign(new Model(config, sessions, model.configs), model, { config, sessions })
}

function labeledConfig(config: Record<string, unknown>, { session }: SharedSession, choice: CallChoice) {
  const mixes = mixesOf(choice, undefined)
  session.checkMixes(mixes)
  const head = session.headFor(mixes)
  if (head === undefined) return config
  const { count, labels } = head
  const labelCount = isObject(config.id2label) ? Object.keys(config.id2label).length : 0
  if (labels === undefined && labelCount === count) return config
  const id2label = Object.fromEntries(Array.from({ length: count }, (_, i) => [i, labels?.[i] ?? `LABEL_${i}`]))
  const label2id = Object.fromEntries(Object.entries(id2label).map(([id, label]) => [label, Number(id)]))
  return Object.assign(Object.create(Object.getPrototypeOf(config)), config, { id2label, label2id })
}

function checkLabels({ session, graph }: SharedSession, choice: CallChoice, task: string): void {
  if (session.headFor(mixesOf(choice, undefined)) !== undefined || logitsName(graph) === 'logits') return
  throw new UnsupportedError({
    where: task,
    what: 'neither the model nor the adapter has a head for labels',
    expected: 'an adapter with modules_to_save, named in `adapter`',
    got: session.adapters.length === 0 ? 'no adapters' : session.adapters.join(', '),
  })
}

const MASK = 'attention_mask'

const [SEQLENS, BIAS] = [5, 10]

/** Providers whose GroupQueryAttention accepts an attention bias. */
const TAKES_BIAS = new Set(['cpu', 'wasm'])

/** The bias that hides a key: far below all scores, but finite, so that rows of hidden keys alone stay finite. */
const HIDDEN = { [DataType.FLOAT]: -1e9, [DataType.FLOAT16]: -3e4 } as const

/**
 * Hides the padding that transformers.js puts on the left: GroupQueryAttention counts keys from the left, so it would
 * take the padding for keys.
 * https://github.com/microsoft/onnxruntime/blob/main/docs/ContribOperators.md#com.microsoft.GroupQueryAttention
 */
export function paddingPlan(graph: Graph, device: string): { edit?: typeof hidePadding; check(feeds: Feeds): void } {
  if (!countsKeysFromLeft(graph)) return { check() {} }
  const isMasked = graph.inputs.some(({ name }) => name === MASK)
  if (TAKES_BIAS.has(device) && isMasked) return { edit: hidePadding, check() {} }
  return {
    check({ [MASK]: mask }) {
      if (mask === undefined || (mask.data as ArrayLike<unknown>).length === 0) return
      if (!Array.from(mask.data as BigInt64Array).some((value) => Number(value) === 0)) return
      throw new UnsupportedError({
        where: 'GroupQueryAttention',
        what: 'texts of different lengths cannot share a batch with this graph on this device',
        got: device,
        hint: 'Call the pipeline for one text at a time, or open it with device: cpu (in pages wasm)',
      })
    },
  }
}

function hidePadding(graph: Graph): void {
  const nodes = graph.nodes.filter(({ opType, input }) => opType === 'GroupQueryAttention' && !input[BIAS])
  const g = new Builder(graph, 'padding')
  const dimOf = (value: string, axis: number) => g.op('Gather', [g.shape(value), g.int([axis])], { axis: 0 })
  const [batch, total, sequence] = [dimOf(MASK, 0), dimOf(MASK, 1), dimOf('input_ids', 1)]
  const lengths = g.cast(g.expand(g.sub(total, g.int([1])), batch), DataType.INT32)
  const shape = g.concat([batch, g.int([1]), sequence, total], 0)
  const biases = new Map<DataType, string>()
  const biasOf = (type: keyof typeof HIDDEN) => {
    const isHidden = g.sub(g.float(1), g.cast(MASK, DataType.FLOAT))
    const row = g.cast(g.mul(isHidden, g.float(HIDDEN[type])), type)
    return g.expand(g.unsqueeze(row, [1, 2]), shape)
  }
  for (const node of nodes) {
    const isHalf = graph.declared(node.input[3])?.elemType === DataType.FLOAT16
    const type = isHalf ? DataType.FLOAT16 : DataType.FLOAT
    const bias = biases.get(type) ?? biasOf(type)
    biases.set(type, bias)
    const inputs = Array.from({ length: Math.max(node.input.length, BIAS + 1) }, (_, i) => node.input[i] ?? '')
    inputs[SEQLENS] = lengths
    inputs[BIAS] = bias
    graph.setInputs(node, inputs)
  }
}
