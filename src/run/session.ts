// The interface of a session: a base model, any number of adapters, and the ways to run them.

// The files of src/run/, in reading order:
//   session.ts, model-session.ts                   the interface of a session, and the session
//   graphs.ts, graph-session.ts, session-graph.ts  its graphs, and how each is opened
//   adapters/                                      the factors of adapters as inputs, also of several adapters in one batch
//   engine.ts, graph-engine.ts                     what runs in the worker, which worker.ts and node/ start
//   generate/                                      texts: the batch of running texts, caches and sampling
//   schemas/                                       texts that follow a JSON schema
//   readings/                                      labels, tags and vectors

import type { SignalLike } from '../core/base/globals.js'
import type { LoraAdapter } from '../lora/adapter.js'
import type { ImageSource } from '../model/images/image.js'
import type { ModuleMap } from '../model/match/linears.js'
import type { Model } from '../model/model-folder.js'
import type { ToolForm } from '../model/text/calls/call.js'
import type { FunctionTool } from '../model/text/calls/growing-text.js'
import type { MessageOfParts } from '../model/text/chat.js'
import type { Feeds, RuntimeTensor, SessionOptions } from '../onnx/runtime/runtime.js'
import type { AllowedKind } from './adapters/allowed.js'
import type { AdapterChoice } from './adapters/choice.js'
import type { CallAnswer, CallTools } from './calls.js'
import type { SamplingOptions } from './generate/sampling.js'
import type {
  Classification,
  ClassifyInput,
  ClassifyOptions,
  EmbedOptions,
  QuantizedOptions,
  Ranges,
  RankedDocument,
  RerankOptions,
  Tagging,
  TagOptions,
  TextOrWords,
} from './readings/options.js'

export type * from './readings/options.js'

/** The adapters of a session, and how the runtime opens it. */
export interface AdapterSessionOptions
  extends Omit<SessionOptions, 'executionProviders' | 'exactProducts' | 'lowMemory'> {
  /** The adapters that the session has from the start: name → adapter. Runs choose an adapter by this name. */
  adapters?: Readonly<Record<string, LoraAdapter>> | undefined
  /**
   * The devices that run the model, with ONNX Runtime's names: cpu, webgpu, cuda, coreml, dml, … You can give several.
   * If the first cannot compute an operator, the next one does. Default: the CPU.
   * @flag NAME,…
   */
  device?: string | readonly string[] | undefined
  /**
   * Memory or speed. `fast`: ONNX Runtime copies the weights in an order that makes products faster. `low`: it copies
   * none, and runs are a few percent slower.
   * @default fast
   */
  memory?: 'low' | 'fast' | undefined
  /** Module name → name of its node or weight. Needed only if the graph does not name its modules. */
  modules?: ModuleMap | undefined
  /**
   * Leaves out layers of an adapter if the export does not have their module. Default false: such layers are an error.
   */
  allowMissing?: boolean | undefined
  /**
   * The parts that adapters of later `add` calls may have. The graph is opened with inputs for them at all layers, so
   * that `add` never opens it again, and an adapter with other parts is an error. `lora`: linear layers. `dora`: their
   * magnitudes. `biases`: their biases. `embeddings`: embeddings, trained tokens, and the output layer. `heads`: heads
   * of classifiers. Default: any part, and the graph is opened again if an adapter has a new kind of part.
   */
  allow?: readonly AllowedKind[] | undefined
  /**
   * How exact products with quantized weights (MatMulNBits) are. With 4, their inputs are rounded to 8 bits: this is
   * less exact, but faster on the CPU, most of all for several texts. With 0, the inputs stay floats. 4 is an error if
   * the model has no such products. Default: the value in the model's file, or 0 if it has none.
   */
  accuracyLevel?: 0 | 4 | undefined
  /**
   * The largest number of texts that `generate` and `stream` write at the same time, over all calls. More calls wait in
   * order. A call with a larger `batchSize` may have more.
   * @range an integer of at least 1
   * @default 8
   */
  maxBatch?: number | undefined
  /**
   * The largest number of bytes for the key-value caches of the texts that are written at the same time, each counted
   * with its prompt and all tokens that it may get. A text that needs more waits until it is alone.
   * @range an integer of at least 1
   * @default 1073741824
   */
  cacheBytes?: number | undefined
  /**
   * The largest number of bytes for the key-value caches of texts that have ended. A text that begins like one of them,
   * such as the next turn of a chat, with the same adapters, does not read this part again. 0 keeps none.
   * @range an integer of at least 0
   * @default 268435456
   */
  prefixCache?: number | undefined
}

/** Options of `run`. */
export interface RunOptions {
  /**
   * Name of the adapter. `{ a: 0.5, b: 1 }` adds several adapters, each with its weight. A list has one such choice for
   * each row of the batch. The adapters may have different ranks. null is the base model alone. Default null.
   */
  adapter?: AdapterChoice | readonly AdapterChoice[] | undefined
  /** Outputs to compute. Default: all. */
  outputNames?: readonly string[] | undefined
  /** The graph of the model to run, such as `encoder`. Default: the decoder, or the only graph. */
  graph?: string | undefined
}

/**
 * A text to continue, the messages of a chat to answer, or token ids to continue. The last message must not be from the
 * assistant. For models of texts and pictures, the content of a message can be a list of parts: `{ type: 'text', text
 * }`, and `{ type: 'image' }` where a picture goes.
 */
export type Prompt = string | readonly MessageOfParts[] | TokenPrompt

/** A text given as token ids, which are used as they are. */
export interface TokenPrompt {
  readonly ids: readonly number[]
}

/** A picture, a list of pictures, or for several prompts a list with one of these for each prompt. */
export type PromptImages = ImageSource | readonly (ImageSource | readonly ImageSource[])[]

/** How a chat becomes text. */
export interface ChatOptions {
  /**
   * Text of a chat template (Jinja), or the name of one of the model's. Default: the template that the adapter was
   * trained with, if it was trained on chats. Otherwise the template in the model's folder.
   */
  chatTemplate?: string | undefined
  /**
   * Further variables of the template, such as `{ enable_thinking: false }`.
   * @help variables of the chat template, such as enable_thinking=false
   */
  chatTemplateArgs?: Readonly<Record<string, unknown>> | undefined
  /**
   * Descriptions of the functions that the model may call (JSON Schema). If the chat template has no place for them,
   * they are written into the system message, in Hermes' form.
   */
  tools?: readonly object[] | undefined
  /** The beginning of the answer to a chat, which the model goes on with. The text comes without it. Default: none. */
  answerStart?: string | undefined
  /** How the model writes calls. Default: the form that the chat template shows or names, else Hermes'. */
  toolForm?: ToolForm | undefined
}

/** Options of `stream`. */
export interface StreamOptions extends SamplingOptions, ChatOptions {
  /**
   * Name of an adapter of the session, for the whole text. `{ a: 0.5, b: 1 }` adds several adapters, each with its
   * weight. A list has one such choice for each prompt. null is the base model alone. Default null.
   */
  adapter?: AdapterChoice | readonly AdapterChoice[] | undefined
  /**
   * Pictures for a model of texts and pictures, in the order of their places: a path (not in browsers), the bytes of a
   * file, or `{ data, width, height }`. A text marks each place with the model's token, such as `<image>`. In a chat, a
   * part `{ type: 'image' }` is a place. Without such a part, pictures go before the last question. For several
   * prompts: a list with the pictures of each.
   */
  images?: PromptImages | undefined
  /**
   * The largest number of new tokens. The text also ends when the model's context is full.
   * @range an integer of at least 1
   * @default 128
   */
  maxNewTokens?: number | undefined
  /**
   * The smallest number of new tokens. Before that, no end token comes, and no stop string ends the text. With `schema`
   * it does not count. Default 0.
   * @range an integer of at least 0
   */
  minNewTokens?: number | undefined
  /** Goes on after the model's end tokens. Default false. */
  ignoreEos?: boolean | undefined
  /** Tokens that end the text, in addition to the model's end tokens. */
  stopTokenIds?: readonly number[] | undefined
  /** Numbers that are added to the logits of tokens, by id. */
  logitBias?: Readonly<Record<number, number>> | undefined
  /**
   * Generation ends before the first of these texts. Default: none. The answer to a chat always ends where its turn
   * ends.
   */
  stop?: string | readonly string[] | undefined
  /**
   * How many of the most likely tokens get a score at each step, in addition to the chosen token. Default: no scores.
   * @range an integer of at least 0
   */
  logprobs?: number | undefined
  /**
   * The same seed gives the same text. With several prompts, the second has seed + 1, and so on. Default: a new random
   * seed for each call. The result contains the seed.
   * @range a safe integer
   */
  seed?: number | undefined
  /**
   * A JSON schema that the text has to fit, or `{ type: 'object' }` for any object. Each text is JSON and fits:
   * when only the tokens for its end are left of `maxNewTokens`, it ends, and `finish` is `max-new-tokens`. Fewer than
   * the shortest fitting text needs are too few. Needs the package @mlc-ai/web-xgrammar.
   */
  schema?: object | undefined
  /**
   * The form of a text with parts that fit schemas, as a structural tag of XGrammar. It is not checked: give forms of
   * your own, and use `schema` for schemas of others. Needs the package @mlc-ai/web-xgrammar.
   */
  structure?: object | undefined
  /** Only calls with the same `cacheScope` reuse each other's cached prompts: see `prefixCache`. Default: all do. */
  cacheScope?: string | undefined
  /** Stops the generation after the current token. The promise rejects with the signal's reason. */
  signal?: SignalLike | undefined
}

/** Options of `encode` and `toolForm`. */
export interface EncodeOptions extends ChatOptions {
  /** The adapter whose chat template is taken: its name, or `{ name: weight, … }`. Default null. */
  adapter?: AdapterChoice | undefined
}

/** Options of `call`. The default temperature is 0. */
export interface CallOptions<Tools extends CallTools>
  extends Omit<StreamOptions, 'tools' | 'schema' | 'structure' | 'logprobs' | 'adapter'> {
  /** One adapter: its name, or `{ name: weight, … }`; null is the base model alone. Default null. */
  adapter?: AdapterChoice | undefined
  /** The functions that may be called. Default: those that the adapter knows, from training with `toolsInAdapter`. */
  tools?: Tools | undefined
  /** `required`: the answer must be calls. Default `auto`. */
  toolChoice?: 'auto' | 'required' | undefined
  /** Keeps calls to the schemas of the functions. Needs the package @mlc-ai/web-xgrammar. Default false. */
  strict?: boolean | undefined
}

/** Options of `score`. */
export interface ScoreOptions {
  /** One adapter: its name, or `{ name: weight, … }`; null is the base model alone. Default null. */
  adapter?: AdapterChoice | undefined
  /**
   * How many of the most likely tokens get a score in each place, in addition to the token there.
   * @range an integer of at least 0
   * @default 0
   */
  logprobs?: number | undefined
}

/** A token of a text that was read. Nothing comes before the first one, so it has no `logprob`. */
export interface ReadToken extends Omit<TokenScore, 'logprob'> {
  readonly logprob: number | null
}

/** How texts are continued. */
export interface GenerateOptions extends StreamOptions {
  /**
   * The largest number of prompts that run together. A larger number is faster and needs more memory. The default is
   * never larger than the session's `maxBatch`.
   * @range an integer of at least 1
   * @default 8
   */
  batchSize?: number | undefined
  /** Callbacks. Default: none. */
  on?: GenerateEvents | undefined
}

/** Callbacks of {@link AdapterSession.generate}. If one throws an error, the generation stops. */
export interface GenerateEvents {
  /**
   * Called with each piece of text as soon as it is final, with the index of its prompt, and if `logprobs` is set with
   * the scores of the tokens since the last piece. All pieces of a prompt together are the text of its result.
   */
  text?(piece: string, index: number, scores: readonly TokenScore[]): void
}

/** A token and how likely it was. */
export interface TokenScore {
  /** The token's id. */
  readonly id: number
  /** Its text. */
  readonly text: string
  /** Natural logarithm of the probability that the model gives, before temperature, filters and penalties. */
  readonly logprob: number
  /** The most likely tokens of this step, the most likely first. */
  readonly top: readonly Omit<TokenScore, 'top'>[]
}

/** A continued text. */
export interface GenerateResult {
  /** The new text, without the prompt, special tokens and the stop text. */
  text: string
  /** Number of new tokens, without the token that ended the text. */
  tokens: number
  /** Number of tokens of the prompt. */
  promptTokens: number
  /** How many of the prompt's tokens came from the cache: see `prefixCache`. */
  cachedTokens: number
  /** The new tokens, including those of a stop string. */
  tokenIds: number[]
  /**
   * Why the text ended: the model wrote an end token, a stop string came, `maxNewTokens` was reached, or the context is
   * full.
   */
  finish: 'eos' | 'stop' | 'max-new-tokens' | 'context'
  /** The stop text that ended it, if one did. */
  stop?: string
  /** The seed of this text. The same seed and options give the same text. */
  seed: number
  /** Seconds from the call to the end of the text. Loading the model does not count. */
  seconds: number
  /** One entry for each of `tokenIds`, if the option `logprobs` is set. */
  logprobs?: TokenScore[]
}

/**
 * A base model in memory with any number of adapters. Each run chooses one adapter, a mix, or one for each row. You can
 * start several calls at the same time: texts share steps, and other calls run in order. `openSession` makes it.
 */
export interface AdapterSession {
  /** The model of the session. Do not close it before you call `dispose`. */
  readonly model: Model
  /** Names of the adapters that runs can choose. */
  readonly adapters: readonly string[]
  /** Roles of the model's graphs that runs can choose: `decoder` and `encoder`, or `model` alone. */
  readonly graphs: readonly string[]
  /**
   * The model's own inputs, without the inputs for adapters. If the model has several graphs, these are the inputs of
   * the first.
   */
  readonly inputNames: readonly string[]
  /** The model's outputs. */
  readonly outputNames: readonly string[]

  /** Copies an adapter into the session; runs choose it by `name`. */
  add(name: string, adapter: LoraAdapter): Promise<void>

  /**
   * Removes an adapter and frees its memory. Texts that already use it are finished first.
   *
   * @throws MismatchError for an unknown name, StateError when the session is disposed
   *
   * @example
   * const session = await openSession('models/union-3m', { adapters: { peft: 'tests/golden/peft/f32' } })
   * await session.remove('peft')
   * await session.dispose()
   */
  remove(name: string): Promise<void>

  /**
   * Runs the model once.
   *
   * @param feeds the model's own inputs by name: `{ type, data, dims }`, such as ONNX Runtime's own tensors. For a
   *   language model `input_ids` is enough: lowrank adds a mask of ones, positions from that mask, and an empty cache
   *   if they are missing.
   * @returns the outputs by name. The session does not use their arrays again
   * @throws MismatchError for an unknown adapter, input or output; ConfigError for a value that is not a tensor;
   *   RuntimeError when the run fails; StateError when the session is disposed
   *
   * @example
   * const session = await openSession('models/union-3m')
   * const ids = session.model.tokenizer?.encode('And the people') ?? []
   * const { logits } = await session.run({
   *   input_ids: { type: 'int64', data: BigInt64Array.from(ids, BigInt), dims: [1, ids.length] },
   * })
   * console.log(logits.dims)
   * await session.dispose()
   */
  run(feeds: Feeds, options?: RunOptions): Promise<Record<string, RuntimeTensor>>

  /**
   * Continues a text, or answers a chat: messages go through the chat template, and the answer ends where a turn does.
   * Several prompts run together, `batchSize` at a time. Each gets the text that it would get alone. Options that you
   * leave out come from the model's generation_config.json. If that file does not set them, lowrank always takes the
   * most likely token.
   *
   * @param prompt text, a list of messages, or a list of such prompts
   * @returns the result; for a list of prompts, a list of results in the same order
   * @throws ConfigError for an option that is unknown or out of range, MismatchError for an unknown adapter or a
   *   tokenizer of another model, DataError for a prompt that has no tokens or fills the whole context, for a chat that
   *   cannot be answered, for a picture that cannot be read, and for more or fewer pictures than places, FormatError
   *   for a chat without a usable template, UnsupportedError when the graph is not a causal language model, reads no
   *   pictures, or cannot run a different adapter for each row, FileError when the model's folder has no
   *   embed_tokens.onnx, decoder, vision_encoder.onnx or preprocessor_config.json and needs it, NumericError when the
   *   logits are not finite, StateError when the session is disposed; what the signal and `on.text` throw
   *
   * @example
   * const session = await openSession('models/union-3m')
   * const { text, seed } = await session.generate('And the people', { temperature: 0.7, maxNewTokens: 20 })
   * console.log(text, seed)
   * const texts = await session.generate(['And the people', 'The sea'], { maxNewTokens: 20, stop: '.' })
   * console.log(texts.map(({ text }) => text))
   * await session.dispose()
   */
  generate(prompt: Prompt, options?: GenerateOptions): Promise<GenerateResult>
  generate(prompts: readonly Prompt[], options?: GenerateOptions): Promise<GenerateResult[]>

  /**
   * Gives the text of one prompt piece by piece, each piece as soon as it is final. If you leave the loop, generation
   * stops.
   *
   * @param prompt text, or a list of messages
   * @returns an async generator of the pieces. Its return value is the result
   * @throws what `generate` throws, at the first step of the iteration
   *
   * @example
   * const session = await openSession('models/union-3m')
   * for await (const piece of session.stream('And the people', { maxNewTokens: 20 })) process.stdout.write(piece)
   * await session.dispose()
   */
  stream(prompt: Prompt, options?: StreamOptions): AsyncGenerator<string, GenerateResult, undefined>

  /**
   * Gives each text, pair of texts or picture a label. If the model reads pictures, a string is the path of a file. It
   * uses the head of the adapter, or else the head of the model. The result of a text does not depend on the other
   * texts of the call. The names of the labels come from the adapter, or else from the model's config.json, or else
   * they are LABEL_0, LABEL_1, …
   *
   * @returns one result for a single text, a list for a list
   * @throws UnsupportedError when neither the adapter nor the model has a head for labels; MismatchError for an unknown
   *   adapter, a tokenizer of another model, or when the numbers of labels and logits differ; ConfigError for an option
   *   or a text that is not usable; FileError when the model has no tokenizer; DataError for a picture that cannot be
   *   read; NumericError when the logits are not finite; StateError when the session is disposed
   *
   * @example
   * const session = await openSession('tests/golden/text-classification/encoder', {
   *   adapters: { mood: 'tests/golden/text-classification/encoder/golden/adapter-init' },
   * })
   * const { label, score } = await session.classify('The sea was calm.', { adapter: 'mood' })
   * console.log(label, score)
   * await session.dispose()
   */
  classify(input: ClassifyInput, options?: ClassifyOptions): Promise<Classification>
  classify(inputs: readonly ClassifyInput[], options?: ClassifyOptions): Promise<Classification[]>

  /**
   * Orders documents by how well they answer a question. A head with one label reads the question together with each
   * document, and its score goes through a sigmoid, or stays as it is if the folder of sentence-transformers says so.
   * Without such a head, the score is the cosine of the vectors.
   *
   * @returns the documents, the best first
   * @throws UnsupportedError when the head has several labels, or the model gives no vectors; what `classify` and
   *   `embed` throw
   *
   * @example
   * const session = await openSession('tests/golden/text-classification/encoder')
   * const ranked = await session.rerank('How was it?', ['It was calm.', 'A day.'])
   * for (const { index, score } of ranked) console.log(index, score)
   * await session.dispose()
   */
  rerank(query: string, documents: readonly string[], options?: RerankOptions): Promise<RankedDocument[]>

  /**
   * Gives each word of a text a tag, and finds the entities that the tags spell, such as names. A text is cut into
   * words at spaces, and each punctuation mark is a word. To cut it in another way, give the words. The result of a
   * text does not depend on the other texts of the call.
   *
   * @returns one result for a single text, a list for a list
   * @throws UnsupportedError when neither the adapter nor the model has a head for tags; MismatchError for an unknown
   *   adapter, a tokenizer of another model, or when the numbers of labels and logits differ; ConfigError for an option
   *   or a text that is not usable; FileError when the model has no tokenizer; NumericError when the logits are not
   *   finite; StateError when the session is disposed
   *
   * @example
   * const session = await openSession('tests/golden/token-classification/distilbert')
   * const { entities, words } = await session.tag('Captain Ahab saw Nantucket.')
   * console.log(entities.map(({ label, text }) => `${label} ${text}`), words.length)
   * await session.dispose()
   */
  tag(text: TextOrWords, options?: TagOptions): Promise<Tagging>
  tag(texts: readonly TextOrWords[], options?: TagOptions): Promise<Tagging[]>

  /**
   * Makes a vector for each text. Texts with a similar meaning have similar vectors. The result of a text does not
   * depend on the other texts of the call.
   *
   * @returns one vector for a single text, a list for a list
   * @throws UnsupportedError when the graph gives no vectors of tokens, or the model combines them in a way that
   *   lowrank does not know; MismatchError for an unknown adapter or a tokenizer of another model; ConfigError for an
   *   option or a text that is not usable; FileError when the model has no tokenizer; NumericError when a vector is not
   *   finite; StateError when the session is disposed
   *
   * @example
   * const session = await openSession('tests/golden/text-classification/encoder')
   * const [first, second] = await session.embed(['The sea was calm.', 'a good day'])
   * console.log(first.reduce((sum, value, i) => sum + value * second[i], 0)) // the cosine
   * await session.dispose()
   */
  embed(text: string, options: QuantizedOptions): Promise<Int8Array | Uint8Array>
  embed(texts: readonly string[], options: QuantizedOptions): Promise<(Int8Array | Uint8Array)[]>
  embed(text: string, options?: EmbedOptions): Promise<Float32Array>
  embed(texts: readonly string[], options?: EmbedOptions): Promise<Float32Array[]>

  /**
   * The least and the highest value of each number of the texts' vectors, for `embed` with `precision` int8 or uint8.
   * Take a few hundred documents, and save the result beside the index.
   *
   * @throws what `embed` throws
   *
   * @example
   * const session = await openSession('tests/golden/text-classification/encoder')
   * const ranges = await session.calibrate(['The sea was calm.', 'a good day'])
   * console.log(await session.embed('a day', { precision: 'int8', ranges }))
   * await session.dispose()
   */
  calibrate(texts: readonly string[], options?: EmbedOptions): Promise<Ranges>

  /**
   * Gives the token ids that `generate` would read for a prompt. A chat goes through the chat template, with the tools.
   *
   * @throws what `generate` throws for such a prompt
   *
   * @example
   * const session = await openSession('models/union-3m')
   * console.log((await session.encode('And the people')).length)
   * await session.dispose()
   */
  encode(prompt: Prompt, options?: EncodeOptions): Promise<readonly number[]>

  /**
   * Tells how likely each token of a text is after those before it.
   *
   * @returns one entry for each token
   * @throws FileError when the model has no tokenizer; what `run` throws
   *
   * @example
   * const session = await openSession('models/union-3m')
   * console.log((await session.score('And the people')).map(({ text, logprob }) => [text, logprob]))
   * await session.dispose()
   */
  score(text: string | TokenPrompt, options?: ScoreOptions): Promise<ReadToken[]>

  /**
   * Asks for calls of functions, and checks them by their schemas. The types of the arguments follow from the schemas.
   *
   * @throws ConfigError without functions, or for a schema without JSON Schema; what `generate` throws
   *
   * @example
   * const session = await openSession('models/union-3m')
   * const tools = { ring: { parameters: { type: 'object', properties: { times: { type: 'integer' } } } } }
   * const chatTemplate = '{{ messages[-1].content }}'
   * const { calls, text, invalid } = await session.call([{ role: 'user', content: 'Ring!' }], { tools, chatTemplate })
   * console.log(calls.length, invalid.length, text)
   * await session.dispose()
   */
  call<const Tools extends CallTools>(
    messages: readonly MessageOfParts[],
    options?: CallOptions<Tools>,
  ): Promise<CallAnswer<Tools>>

  /**
   * How the model writes calls of tools: `hermes` is `<tool_call>{"name", "arguments"}</tool_call>`, `llama` is one
   * JSON object with `name` and `parameters`; {@link ToolForm} has the others. The chat template shows the form; if it
   * says nothing, the form is `hermes`.
   */
  toolForm(options?: EncodeOptions): Promise<ToolForm>

  /**
   * The functions that the adapter, or a merged model, was trained with by `toolsInAdapter`: prompts do not describe
   * them. Undefined if prompts do.
   */
  knownTools(options?: EncodeOptions): Promise<readonly FunctionTool[] | undefined>

  /**
   * How many tokens are in the key-value caches of the running texts, and for how many `cacheBytes` has room: 0 if the
   * model writes no texts.
   */
  cacheUse(): Promise<{ tokens: number; mostTokens: number }>

  /**
   * Waits for all started runs. Then it closes the session and its worker. Other calls throw StateError from then on.
   */
  dispose(): Promise<void>

  /** `await using`: the same as dispose. */
  [Symbol.asyncDispose](): Promise<void>
}
