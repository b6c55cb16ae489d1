// Text classification: a label, several, or a number for a text or a pair of texts. What lies between the encoder and the logits, the head, is trained whole:
// that of the graph, or a new one as transformers puts it on an encoder of this type. The losses are in label-problems.ts.

import { decodeFloats } from '../base/dtype.js'
import { DataError, UnsupportedError } from '../base/errors.js'
import { isObject } from '../base/options.js'
import type { Random } from '../base/random.js'
import { elementCount } from '../base/tensor.js'
import { TensorProto_DataType as DataType } from '../formats/onnx/gen/onnx_pb.js'
import { type EncoderInputs, encoderInputs } from '../graph/inputs/encoder.js'
import { findLinears, type Linear } from '../graph/match/linears.js'
import { type Model, requireTokenizer } from '../graph/model-folder.js'
import type { ObjectiveGraph } from '../graph/training/objective-graph.js'
import type { Value } from '../graph/view/builder.js'
import type { Graph } from '../graph/view/graph.js'
import { readGraph } from '../graph/view/read-graph.js'
import type { Feeds, RuntimeTensor } from '../runtime/runtime.js'
import { checkVocabulary } from '../text/records.js'
import {
  LABEL_OPTIONS,
  type LabelOptions,
  type LabelProblem,
  type ProblemType,
  problemOf,
  type Target,
} from './label-problems.js'
import type { Examples, Head, OpenTask, Task } from './task.js'
import {
  appendHead,
  findHeadForm,
  type HeadForm,
  type HeadInput,
  type HeadLayer,
  headForm,
  headInput,
  headTensors,
  headWidth,
  trainedLayers,
} from './text-heads.js'
import { attentionMask, PROBE_BATCHES, padded, tokenLengths } from './token-batch.js'

/** A row of data. */
export interface LabeledText {
  readonly text: string
  readonly textPair: string | undefined
  readonly label: Target
}

/** A tokenized row. */
export interface LabeledExample {
  readonly inputIds: Int32Array
  /** 1 for tokens of the second text. */
  readonly tokenTypeIds: Int32Array
  readonly label: Target
}

/** The standard deviation of a new head where config.json gives none: that of transformers. */
const INITIALIZER_RANGE = 0.02

export const textClassification: Task<LabeledText, LabeledExample, LabelOptions> = {
  name: 'text-classification',
  peftType: 'SEQ_CLS',
  reading: 'classify',
  headForm: findHeadForm,
  options: LABEL_OPTIONS,

  check(model) {
    const graph = readGraph(model.onnx.proto)
    encoderInputs(graph)
    headForm({ config: model.config, graph, linears: findLinears(graph) })
  },

  parse: parseLabeledText,

  encode({ text, textPair, label }, { model, maxLength }) {
    const tokenizer = requireTokenizer(model)
    const { ids, typeIds, isTruncated } = tokenizer.encodeTexts(text, textPair, maxLength)
    checkVocabulary(ids, { tokenizer, vocabularySize: model.vocabularySize })
    const example = { inputIds: Int32Array.from(ids), tokenTypeIds: Int32Array.from(typeIds), label }
    return { examples: [example], isTruncated }
  },

  tokens: ({ inputIds }) => ({ ids: inputIds, counts: () => false }),

  open: (model, examples, options = {}) => new TextClassification(model, examples, options),
}

/** Throws DataError for what is no text with a label. */
function parseLabeledText(row: unknown, where: string): LabeledText {
  const record = (typeof row === 'object' && row !== null ? row : {}) as Record<string, unknown>
  const { text, textPair } = record
  const label = targetOf(record.label ?? record.labels)
  const isPair = textPair === undefined || textPair === null || typeof textPair === 'string'
  if (typeof text === 'string' && label !== undefined && isPair) {
    return { text, textPair: textPair ?? undefined, label }
  }
  throw new DataError({
    where,
    what: 'not a text with a label',
    expected: '"text", "label" and, for pairs, "textPair": texts; a label may be a number, or a list of labels',
    got: Object.keys(record).length === 0 ? 'no fields' : Object.keys(record).join(', '),
    hint: 'If the fields have other names, give them with columns: { text: …, label: … }',
  })
}

/** Numbers without a fraction are names, until a task option says that they are numbers. */
function targetOf(label: unknown): Target | undefined {
  const isName = (value: unknown) =>
    typeof value === 'string' || typeof value === 'boolean' || Number.isSafeInteger(value)
  if (isName(label)) return String(label)
  if (typeof label === 'number' && Number.isFinite(label)) return label
  return Array.isArray(label) && label.every(isName) ? label.map(String) : undefined
}

class TextClassification implements OpenTask<LabeledExample> {
  readonly labels: readonly string[]
  readonly problemType: ProblemType
  readonly head: Head
  readonly probe: OpenTask['probe']
  readonly #model: Model
  readonly #inputs: EncoderInputs
  readonly #form: HeadForm
  /** The layers that are trained, the last ones of the form. */
  readonly #layers: readonly HeadLayer[]
  readonly #hasPrefix: boolean
  readonly #problem: LabelProblem

  constructor(model: Model, examples: Examples<LabeledExample>, options: LabelOptions) {
    const graph = readGraph(model.onnx.proto)
    const linears = findLinears(graph)
    const base = { config: model.config, graph, linears }
    this.#model = model
    this.#inputs = encoderInputs(graph)
    this.#form = headForm(base)
    this.#problem = problemOf(() => targetsOf(examples), knownLabels(model), options)
    this.labels = this.#problem.labels
    this.problemType = this.#problem.type
    this.#layers = trainedLayers(this.#form, base)
    const width = headWidth(base, this.#layers)
    this.#hasPrefix = linears.some(({ name }) => name.startsWith(`${this.#form.encoder}.`))
    this.head = {
      modulesToSave: this.#form.modulesToSave.filter((module) =>
        this.#layers.some((layer) => `.${layer.module}.`.includes(`.${module}.`)),
      ),
      tensors: headTensors(this.#layers, width, this.labels.length).map(({ layer, member, shape }) => ({
        name: `${layer.module}.${member}`,
        shape,
        start: (random: Random) => this.#start(graph, linears, { layer, member, shape }, random),
      })),
    }
    const [first, second] = PROBE_BATCHES.map(({ batch, sequence }) => {
      const example = {
        inputIds: new Int32Array(sequence),
        tokenTypeIds: new Int32Array(sequence),
        label: this.problemType === 'regression' ? 0 : this.labels[0],
      }
      return this.collate(Array(batch).fill(example), sequence)
    })
    this.probe = { feeds: [first, second], lengths: tokenLengths() }
  }

  forward(graph: ObjectiveGraph): Value {
    const parameters = new Map(this.head.tensors.map(({ name, shape }) => [name, graph.parameter(name, shape)]))
    const logits = appendHead(graph.g, this.#headInput(graph), this.#layers, (name) => parameters.get(name))
    return this.#problem.loss(graph, graph.predict(logits))
  }

  moduleName(name: string): string {
    const isWhole = this.#hasPrefix || this.#form.layers.some(({ module }) => module === name)
    return isWhole || this.#form.encoder === '' ? name : `${this.#form.encoder}.${name}`
  }

  cost({ inputIds }: LabeledExample): number {
    return inputIds.length
  }

  collate(examples: readonly LabeledExample[], length: number): Feeds {
    const ids = examples.map(({ inputIds }) => inputIds)
    const types = examples.map(({ tokenTypeIds }) => tokenTypeIds)
    return {
      ...this.#inputs.feeds({
        batch: examples.length,
        sequence: length,
        inputIds: padded(ids, length, this.#model.padTokenId),
        attentionMask: attentionMask(ids, length),
        tokenTypeIds: padded(types, length, 0),
      }),
      ...this.#problem.targets([...targetsOf(examples)]),
    }
  }

  normalizer(examples: readonly LabeledExample[]): number {
    return this.#problem.normalizer([...targetsOf(examples)])
  }

  content({ inputIds, tokenTypeIds, label }: LabeledExample): (Int32Array | Uint8Array)[] {
    return [inputIds, tokenTypeIds, new TextEncoder().encode(typeof label === 'string' ? label : JSON.stringify(label))]
  }

  /** The logits of each example. */
  predict(outputs: Readonly<Record<string, RuntimeTensor>>, examples: readonly LabeledExample[]): Float32Array[] {
    const logits = Object.values(outputs).find(({ dims }) => dims.length === 2)?.data as Float32Array
    const count = this.labels.length
    return examples.map((_, row) => logits.slice(row * count, (row + 1) * count))
  }

  metrics({
    examples,
    predictions,
  }: {
    examples: readonly LabeledExample[]
    predictions: readonly unknown[]
  }): Record<string, number> {
    return this.#problem.metrics([...targetsOf(examples)], predictions as Float32Array[])
  }

  /** What goes into the first layer that is trained. */
  #headInput({ graph }: ObjectiveGraph): HeadInput {
    const input = headInput(this.#form, graph, this.#layers)
    if (input !== undefined) return input
    const got = graph.outputs.map(({ name }) => name).join(', ')
    throw new UnsupportedError({ where: 'ONNX model', what: 'no output has the hidden states that a head needs', got })
  }

  /** The base's own values where the graph has them in this shape; else as transformers starts a new head. */
  async #start(
    graph: Graph,
    linears: readonly Linear[],
    { layer: { module, kind }, member, shape }: ReturnType<typeof headTensors>[number],
    random: Random,
  ): Promise<Float32Array> {
    const own = linears.find(({ name, form }) => name === module && form.name === 'Gemm')
    const tensor = own && graph.constant(own.node.input[member === 'weight' ? 1 : 2])
    const isSame = tensor?.dims.map(Number).join() === shape.join() && (member === 'bias' || own?.transposed)
    if (tensor !== undefined && isSame && tensor.dataType === DataType.FLOAT) {
      return decodeFloats(await this.#model.onnx.readTensor(tensor), 'F32').slice()
    }
    const range = this.#model.config.initializer_range
    const deviation = typeof range === 'number' ? range : INITIALIZER_RANGE
    if (kind === 'norm') return new Float32Array(elementCount(shape)).fill(member === 'weight' ? 1 : 0)
    return Float32Array.from({ length: elementCount(shape) }, () =>
      member === 'bias' ? 0 : deviation * random.normal(),
    )
  }
}

function* targetsOf(examples: Iterable<LabeledExample>): Generator<Target> {
  for (const { label } of examples) yield label
}

/** The labels of config.json, in their order. */
function knownLabels({ config: { id2label } }: Model): string[] {
  const named = Object.entries(isObject(id2label) ? id2label : {})
  return named.sort(([a], [b]) => Number(a) - Number(b)).map(([, label]) => String(label))
}
