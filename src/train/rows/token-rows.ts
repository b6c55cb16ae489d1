// Single rows of embeddings that a run trains, as PEFT's trainable_token_indices says: which tokens and modules are
// meant, and what the rows start from.

import { ConfigError, didYouMean, MismatchError, UnsupportedError } from '../../core/base/errors.js'
import { checkArgument, isList, isObject, kind } from '../../core/base/options.js'
import type { LoraAdapter } from '../../lora/adapter.js'
import { type LoraConfig, resolveConfig } from '../../lora/config.js'
import { findEmbeddings } from '../../model/match/forms/lookup.js'
import { findLinears, type Linear, type ModuleMap } from '../../model/match/linears.js'
import { nameOfModule } from '../../model/match/module-names.js'
import { readTokenRows } from '../../model/match/read-base-tensor.js'
import type { Model } from '../../model/model-folder.js'
import { readTies } from '../../model/place/facts.js'
import type { Placement } from '../../model/place/placement.js'
import { type Graph, readGraph } from '../../onnx/view/graph.js'
import type { TrainedRows } from '../graph/open-base.js'
import type { TokenChoice, TrainedTokens } from '../options.js'
import type { OpenTask } from '../tasks/task.js'

export interface Context {
  readonly model: Model
  readonly open: OpenTask
  readonly modules: ModuleMap | undefined
}

interface Table {
  readonly name: string
  readonly place: Linear
  readonly vocabulary: number
  readonly features: number
}

const OPTION = 'trainedTokens'

const isToken = (value: unknown) =>
  typeof value === 'number' ? Number.isSafeInteger(value) && value >= 0 : typeof value === 'string' && value !== ''
const isTokens = (value: unknown) => Array.isArray(value) && value.length > 0 && value.every(isToken)
const isByModule = (value: unknown) =>
  isObject(value) && Object.keys(value).length > 0 && Object.values(value).every(isTokens)

const TRAINED_TOKENS = kind(
  'a list of tokens, each text or an id; or an object with such lists by module',
  (value) => isTokens(value) || isByModule(value),
)

export function withTokens(config: LoraConfig, model: Model, given: TrainedTokens | undefined): LoraConfig {
  if (config.trainableTokenIndices !== undefined) {
    throw new ConfigError({ where: 'trainableTokenIndices', what: `in training, this is the option ${OPTION}` })
  }
  if (given === undefined) return config
  checkArgument(given, TRAINED_TOKENS, OPTION)
  const ids = ([module, tokens]: [string, readonly TokenChoice[]]) =>
    [module, idsOf(model, tokens, `${OPTION}.${module}`)] as const
  const indices = isList(given) ? idsOf(model, given, OPTION) : Object.fromEntries(Object.entries(given).map(ids))
  return resolveConfig({ ...config, trainableTokenIndices: indices })
}

function idsOf(model: Model, tokens: readonly TokenChoice[], where: string): number[] {
  const ids = tokens.map((token) => (typeof token === 'number' ? token : idOf(model, token, where)))
  const second = ids.findIndex((id, i) => ids.indexOf(id) < i)
  if (second === -1) return ids
  const first = tokens[ids.indexOf(ids[second])]
  const isSame = first === tokens[second]
  throw new ConfigError({
    where,
    what: `the token ${JSON.stringify(tokens[second])} is given twice`,
    ...(!isSame && { got: `${JSON.stringify(first)} has the id ${ids[second]}, too` }),
  })
}

function idOf({ tokenizer, name }: Model, token: string, where: string): number {
  if (tokenizer === undefined) {
    const what = `the model has no tokenizer that knows the token ${JSON.stringify(token)}`
    throw new ConfigError({ where, what, expected: 'ids of tokens', got: name })
  }
  const id = tokenizer.tokenId(token)
  if (id !== undefined) return id
  const parts = tokenizer.encode(token, { specialTokens: false })
  throw new ConfigError({
    where,
    what: `the tokenizer has no token ${JSON.stringify(token)}`,
    expected: 'tokens as tokenizer.json spells them, or their ids',
    hint:
      parts.length === 1
        ? `The token for this text has the id ${parts[0]}`
        : `The tokenizer splits this text into ${parts.length} tokens: ${parts.join(', ')}. To add a token, use add_tokens and resize_token_embeddings in Python, and export the model again`,
  })
}

export async function addTokenRows(adapter: LoraAdapter, context: Context): Promise<void> {
  const { trainableTokenIndices: given } = adapter.config
  if (given === undefined) return
  checkModel(context.model)
  const tables = tablesOf(context)
  const wanted: { table: Table; tokens: readonly number[] }[] = Array.isArray(given)
    ? [{ table: inputEmbedding(tables, context), tokens: given }]
    : Object.entries(given).map(([module, tokens]) => ({ table: tableOf(tables, module), tokens }))
  const { onnx } = context.model
  const graph = readGraph(onnx)
  const embedding = wanted.find(({ table }) => isEmbedding(table))
  const linears = findLinears(graph, context.modules)
  const ties = await readTies(onnx, {
    graph,
    linears,
    embeddings: embedding === undefined ? [] : [embedding.table.place],
  })
  const tied = [...ties.values()].flat()
  for (const { table, tokens } of wanted) {
    const { name, place, features } = table
    checkRange(table, tokens)
    if (tied.includes(place.name)) {
      if (tokens.join() === embedding?.tokens.join()) continue
      if (adapter.config.ensureWeightTying) {
        throw new ConfigError({
          where: OPTION,
          what: `${name} is tied to the embedding, and would have other trained tokens`,
          expected: 'the same tokens for both, or ensureWeightTying: false',
        })
      }
    }
    adapter.addTokenRows(name, tokens, {
      data: await readTokenRows(onnx, graph, place, tokens),
      shape: [tokens.length, features],
    })
  }
}

export function trainedRows(adapter: LoraAdapter, context: Context, placements: readonly Placement[]): TrainedRows[] {
  const parts = adapter.parts('token-rows')
  if (parts.length > 0) checkModel(context.model)
  return parts.map(({ name, indices, shape }) => {
    const tables = placements.flatMap((at) => (at.kind === 'weight' && at.part === name ? at.linear : []))
    for (const table of tables) checkAlone(adapter, context.open.head?.moduleName(table.name) ?? table.name, name)
    const [embedding] = tables.filter(({ form }) => form.isLookup)
    const heads = tables.filter(({ form }) => !form.isLookup).map((head) => head.name)
    return { name, tokens: indices, features: shape[1], embedding: embedding?.name, heads: [...new Set(heads)] }
  })
}

/** Throws UnsupportedError for an encoder with a decoder: PEFT's one shared embedding is several in their graphs. */
function checkModel({ name, graphs }: Model): void {
  if (graphs.encoder === undefined) return
  throw new UnsupportedError({
    where: OPTION,
    what: 'rows of an embedding cannot be trained in a model with an encoder and a decoder',
    expected: 'a model that is one of the two',
    got: name,
  })
}

function isEmbedding({ place }: Table): boolean {
  return place.form.isLookup === true
}

function tablesOf({ model, open, modules }: Context): Table[] {
  const graph = readGraph(model.onnx)
  const named = (place: Linear): Table => {
    const [vocabulary, features] = place.form.isLookup ? [place.k, place.d] : [place.d, place.k]
    return { name: open.head?.moduleName(place.name) ?? place.name, place, vocabulary, features }
  }
  const embeddings = findEmbeddings(graph)
    .filter(({ input }) => isOfTokens(graph, input))
    .map(named)
  const heads = findLinears(graph, modules)
    .filter(({ isHead, fused }) => isHead && fused === undefined)
    .map(named)
  return [...new Map([...heads, ...embeddings].map((table) => [table.name, table])).values()]
}

/** Nodes that give the tokens that they get. */
const HANDS_TOKENS_ON = new Set(['Cast', 'Identity', 'Reshape', 'Flatten', 'Squeeze', 'Unsqueeze'])

function isOfTokens(graph: Graph, value: string): boolean {
  const maker = graph.producer(value)
  if (maker === undefined) return /(^|_)input_ids$/.test(value) && graph.inputs.some(({ name }) => name === value)
  return HANDS_TOKENS_ON.has(maker.opType) && isOfTokens(graph, maker.input[0])
}

function inputEmbedding(tables: readonly Table[], { model }: Context): Table {
  const found = tables.filter(isEmbedding)
  if (found.length === 1) return found[0]
  const graph = readGraph(model.onnx)
  const readers = graph.nodes.filter(
    ({ input, opType }) => opType !== 'Shape' && input.some((value) => isOfTokens(graph, value)),
  )
  throw new UnsupportedError({
    where: OPTION,
    what: 'rows of the input embedding cannot be trained on this graph',
    expected: 'one embedding that reads input_ids, by Gather or GatherBlockQuantized',
    got:
      found.length > 0
        ? found.map(({ name }) => name).join(', ')
        : readers.map(({ name, opType }) => `${name} (${opType})`).join(', ') || 'a graph that reads no input_ids',
    ...(found.length > 1 && { hint: `Name the module: ${OPTION}: { ${JSON.stringify(found[0].name)}: [...] }` }),
  })
}

function tableOf(tables: readonly Table[], module: string): Table {
  const names = tables.map(({ name }) => name)
  const name = nameOfModule(new Set(names), module)
  const found = tables.find((table) => table.name === name)
  if (found !== undefined) return found
  throw new MismatchError({
    where: OPTION,
    what: `the graph has no embedding of input_ids, and no output layer, with the name ${module}`,
    expected: names.join(', ') || 'a graph that reads input_ids',
    hint: didYouMean(module, names, 3),
  })
}

function checkRange({ name, vocabulary }: Table, tokens: readonly number[]): void {
  const outside = tokens.find((token) => token >= vocabulary)
  if (outside === undefined) return
  throw new MismatchError({
    where: OPTION,
    what: `${name} has no row for the token ${outside}`,
    expected: `ids from 0 to ${vocabulary - 1}`,
    got: String(outside),
    hint: 'The number of rows is fixed in the graph. Use an id that the model has, or add rows in Python by resize_token_embeddings and export the model again',
  })
}

/** Throws UnsupportedError where a layer or a whole tensor of the adapter changes the weight whose rows are trained. */
function checkAlone(adapter: LoraAdapter, name: string, rows: string): void {
  const whole = adapter.get(`${name}.weight`, 'replacement')
  const trained = adapter.get(name, 'linear') ?? (whole?.isTrained ? whole : undefined)
  if (trained === undefined) return
  throw new UnsupportedError({
    where: rows,
    what: `rows of ${name} cannot be trained together with ${trained.kind === 'linear' ? 'a layer of LoRA there' : 'its whole weight'}`,
    hint:
      trained.kind === 'linear'
        ? 'Leave this module out of `targetModules`, or use `excludeModules`'
        : 'Leave this module out of `modulesToSave`, or train its rows alone',
  })
}
