// Opens a GGUF file for a merge, and plans the merge into it. Tensors that no adapter changes are copied as they are.

import { counted, listed, MismatchError, UnsupportedError } from '../../core/base/errors.js'
import { elementCount, roundUp } from '../../core/base/tensor.js'
import type { Checkpoint } from '../../files/checkpoint.js'
import { blockValues, canEncode, type StoredDtype, storedSize } from '../../files/gguf/blocks.js'
import { GGML_TYPES, type GgufTensor, ggmlType } from '../../files/gguf/read.js'
import { type GgufSpec, planGguf, type WrittenValue } from '../../files/gguf/write.js'
import type { TensorInfo } from '../../files/safetensors.js'
import type { OpenBase, PlanInput } from '../parts.js'
import type { BaseModel } from '../plan/base-model.js'
import { coalesce, type Literal, type OutputTensor, type Segment, segmentsOf } from '../plan/layout.js'
import type { TieGroup } from '../plan/names/ties.js'
import { outputTensors, placeParts } from '../plan/plan.js'
import { type GgufModel, type GgufParts, type GgufPlace, OUTPUT, openGguf, resultName, toGgufParts } from './base.js'

/** Keys of a part of a model in several files. The result is one file. */
const SPLIT_KEY = /^split\./

export async function openGgufBase(input: PlanInput): Promise<OpenBase> {
  const model = await openGguf(input)
  return {
    where: model.files[0].source.name,
    async plan(opened, _config, fit) {
      const parts = await toGgufParts(model, opened, input.sources)
      const base = baseModel(input, model, parts, opened.adapters)
      // When unmerging: if the weights are still tied, the adapter was merged into the shared weight.
      const tied = input.sign === -1 ? 'keep' : input.tied
      const changes = placeParts(base, parts, { tied }, fit)
      const { vocabulary } = changes
      if (vocabulary !== undefined) {
        fit.add(
          new UnsupportedError({
            where: parts.embedding,
            what: 'the adapter has another vocabulary than the GGUF file, whose tokenizer stays as it is',
            got: `${vocabulary} rows`,
            hint: 'Merge into the checkpoint, and convert the merged model',
          }),
        )
      }
      if (fit.listsAll || fit.problems.length > 0) return undefined
      const outputs = outputTensors(changes, undefined).flat()
      const { file, warnings } = layOut(model, parts, outputs, input)
      const changed = outputs.filter(({ layers }) => layers.length > 0)
      return {
        files: [file],
        replaced: [],
        edit: { untied: [], dtype: undefined, vocabulary: undefined, head: undefined },
        vocabulary: undefined,
        warnings: [...changes.warnings, ...warnings],
        summary: { added: changes.untied.length > 0 ? [OUTPUT] : [] },
        layers: changed.map(({ name, layers }) => ({
          name: name.replace(/\.weight$/, ''),
          adapters: layers.map(({ name: module, rank, scale }) => ({ module, rank, scale })),
        })),
      }
    },
  }
}

/** The file as a checkpoint whose tensors have the names that the adapters use. */
function baseModel(
  { base }: PlanInput,
  { files, paths, tensors: stored }: GgufModel,
  { places, embedding, head }: GgufParts,
  adapters: BaseModel['adapters'],
): BaseModel {
  const tensors: Checkpoint['tensors'] = new Map(
    [...places].map(([name, place]) => [name, { info: infoOf(name, place), shard: place.file }]),
  )
  const shards = files.map(({ source }, i) => ({
    path: paths[i],
    file: { source, tensors: new Map<string, TensorInfo>(), metadata: {} },
    dataStart: 0,
  }))
  const directory = base.directory
  const checkpoint = {
    directory,
    shards,
    tensors,
    indexPath: undefined,
    indexMetadata: new Map(),
    close: async () => {},
  }
  const tie: TieGroup = { members: [embedding, head], stored: embedding, isBias: false, path: [] }
  return {
    checkpoint,
    config: undefined,
    names: { form: (name) => ({ tensors: [name], isTurned: false, share: undefined }), locate: (name) => name },
    ties: { groups: stored.has(OUTPUT) || !tensors.has(embedding) ? [] : [tie], isKnown: true },
    unchanged: new Set(),
    head: undefined,
    adapters,
  }
}

function infoOf(name: string, { tensor, expert }: GgufPlace): TensorInfo {
  const dtype = GGML_TYPES.get(tensor.type)
  if (dtype === undefined) {
    throw new UnsupportedError({
      where: tensor.name,
      what: 'the adapter changes this tensor, whose type cannot be read',
      expected: [...GGML_TYPES.values()].join(', '),
      got: `type ${tensor.type} of ggml`,
      hint: 'Merge into a GGUF file of another type, such as q8_0 or f16',
    })
  }
  const { shape, offset, byteLength } = tensor
  if (expert === undefined) return { name, dtype, shape, offset, byteLength }
  const [experts, ...own] = shape
  if (expert >= experts || own.length !== 2) {
    throw new MismatchError({ where: name, what: 'no such expert in the base', expected: `below ${experts}` })
  }
  const size = byteLength / experts
  return { name, dtype, shape: own, offset: offset + expert * size, byteLength: size }
}

interface Written extends GgufSpec {
  /** What makes the tensor, in the order of its bytes: itself, or its experts. */
  readonly slices: readonly OutputTensor[]
}

function layOut(
  model: GgufModel,
  { places, embedding, head }: GgufParts,
  outputs: readonly OutputTensor[],
  input: PlanInput,
) {
  const alignment = model.files[0].alignment
  const changed = new Map<GgufTensor, OutputTensor[]>()
  for (const output of outputs) {
    const place = places.get(output.name)
    if (place !== undefined && isChanged(output))
      changed.set(place.tensor, [...(changed.get(place.tensor) ?? []), output])
  }
  const retyped = new Map<string, string[]>()
  const written: Written[] = model.files.flatMap(({ tensors }, file) =>
    tensors.map((tensor): Written => {
      const slices = slicesOf(tensor, file, changed.get(tensor) ?? [], places)
      return slices === undefined ? { ...tensor, slices: [raw(tensor, file)] } : typed(tensor, slices, input, retyped)
    }),
  )
  const separate = outputs.find(({ name }) => name === head && !places.has(head))
  if (separate !== undefined) {
    // The head of a tied model becomes a tensor of its own, which begins as a copy of the embedding.
    const { tensor, file } = places.get(embedding)!
    const copy = { ...tensor, slices: [raw(tensor, file)] }
    written.push({ ...(isChanged(separate) ? typed(tensor, [separate], input, retyped) : copy), name: OUTPUT })
  }
  const metadata = new Map<string, WrittenValue>()
  for (const [key, { bytes }] of model.files[0].metadata) if (!SPLIT_KEY.test(key)) metadata.set(key, { stored: bytes })
  const { header, offsets, byteLength } = planGguf(metadata, written, alignment)
  const literals: Literal[] = [{ offset: 0, byteLength: header.byteLength, bytes: header }]
  const segments: Segment[] = []
  for (const [i, { slices, byteLength: size }] of written.entries()) {
    for (const [j, slice] of slices.entries())
      segments.push(...segmentsOf(slice, offsets[i] + (j * size) / slices.length))
    const end = offsets[i] + size
    const bytes = new Uint8Array(roundUp(end, alignment) - end)
    if (bytes.byteLength > 0) literals.push({ offset: end, byteLength: bytes.byteLength, bytes })
  }
  const warnings = [...retyped].map(
    ([how, names]) => `${how}: ${counted(names.length, 'tensor')} (${listed(names, 'tensors')})`,
  )
  const file = {
    path: input.outFile ?? resultName(model.paths[0]),
    byteLength,
    literals,
    segments: coalesce(segments),
    tensors: written.map(({ name }) => name),
    changed: written.filter(({ slices }) => slices.some(isChanged)).map(({ name }) => name),
  }
  return { file, warnings }
}

function isChanged({ layers, rows, isReplaced }: OutputTensor): boolean {
  return layers.length > 0 || rows.length > 0 || isReplaced
}

/** The slices of a tensor, or undefined if none of them changes. */
function slicesOf(
  tensor: GgufTensor,
  file: number,
  changed: readonly OutputTensor[],
  places: GgufParts['places'],
): OutputTensor[] | undefined {
  if (changed.length === 0) return undefined
  const byExpert = new Map(changed.map((output) => [places.get(output.name)!.expert, output]))
  const whole = byExpert.get(undefined)
  if (whole !== undefined) return [whole]
  return Array.from({ length: tensor.shape[0] }, (_, expert): OutputTensor => {
    const name = `${tensor.name}.${expert}`
    return byExpert.get(expert) ?? unchanged(name, infoOf(name, { tensor, file, expert }), file)
  })
}

function unchanged(name: string, base: TensorInfo, source: number): OutputTensor {
  return { name, dtype: base.dtype, base, source, layers: [], isReplaced: false, rows: [] }
}

/** A tensor that is copied, whatever its type. */
function raw({ name, shape, offset, byteLength }: GgufTensor, source: number): OutputTensor {
  return unchanged(name, { name, dtype: 'U8', shape, offset, byteLength }, source)
}

/** Chooses the type in which a changed tensor is written: its own, if it can be, else q8_0. */
function typed(
  tensor: GgufTensor,
  slices: readonly OutputTensor[],
  { outDtype }: PlanInput,
  retyped: Map<string, string[]>,
): Written {
  const own = GGML_TYPES.get(tensor.type)!
  if (outDtype === 'keep' && !canEncode(own)) {
    throw new UnsupportedError({
      where: tensor.name,
      what: 'the adapter changes this tensor, and its type can be read, but not written',
      got: own,
      hint: 'Leave out `outDtype`: such tensors become q8_0',
    })
  }
  const wish = outDtype === undefined || outDtype === 'keep' ? (canEncode(own) ? own : 'q8_0') : outDtype
  const width = tensor.shape.at(-1) ?? 1
  // llama.cpp wants vectors, such as norms and biases, in f32.
  const isVector = tensor.shape.length === 1
  const dtype: StoredDtype = isVector ? own : width % blockValues(wish) === 0 ? wish : 'fp16'
  if (dtype !== own) {
    const how = `${own} becomes ${dtype}`
    retyped.set(how, [...(retyped.get(how) ?? []), tensor.name])
  }
  const byteLength = elementCount(tensor.shape) * storedSize(dtype)
  const { name, shape } = tensor
  return { name, shape, type: ggmlType(dtype)!, byteLength, slices: slices.map((slice) => ({ ...slice, dtype })) }
}
