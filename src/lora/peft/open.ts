// Opens an adapter in memory or in a folder: its config, its parts without their values, and a way to read the values.
// A folder's tensors stay in their file, so memory does not grow with the adapter.

import { closingOnError, type Directory, MemorySource } from '../../core/base/bytes.js'
import { encodeWeights, type FloatDtype, isFiniteStored, isFloatDtype } from '../../core/base/dtype.js'
import type { LowrankError } from '../../core/base/errors.js'
import { isAllFinite, type Matrix, type Tensor } from '../../core/base/tensor.js'
import { readTensorF32 } from '../../files/safetensors.js'
import type { AdapterPart, BaseRecord, LoraAdapter } from '../adapter.js'
import type { LoraConfig } from '../config.js'
import { type FactorView, notFinite, type StoredTensor, tensorsOf } from '../part.js'
import { isAdapter, isPlain, linearValues, plainAdapter, type RunAdapter } from '../run-adapter.js'
import { parsePeftConfig } from './config.js'
import { readChatTemplate, readNamedPrompts } from './file-names.js'
import { findAdapter, type Meaning, openWeights, readBaseRecord, readConfig, readMeaning } from './files.js'
import { type AdapterTensor, normalizeKeys } from './keys.js'
import { claimTensors, type OpenPart } from './tensors.js'

/** An adapter in memory, or in its folder. */
export interface OpenAdapter {
  /** The folder's name, or `adapter` if it is in memory, for error messages. */
  readonly name: string
  readonly config: LoraConfig
  /** See {@link LoraAdapter.notes}. */
  readonly notes: readonly string[]
  /** See {@link LoraAdapter.labels} and {@link LoraAdapter.problemType}. */
  readonly meaning: Meaning
  /** See {@link LoraAdapter.chatTemplate}. */
  readonly chatTemplate: string | undefined
  /** See {@link LoraAdapter.prompts}. */
  readonly prompts: LoraAdapter['prompts']
  /** See {@link LoraAdapter.trainedOn}. */
  readonly trainedOn: BaseRecord | undefined
  /** Problems with config and tensors. Empty unless it was opened with `isTolerant`. */
  readonly problems: readonly LowrankError[]
  /** Returns the sound parts. In a folder: layers, experts, replaced tensors, rows of tokens, each sorted by name. */
  parts(): readonly OpenPart[]
  /** Returns the type that a part is saved in: the type of all its tensors, or fp32 if their types differ. */
  dtypeOf(part: OpenPart): FloatDtype
  /** Loads the whole adapter. Throws as `read` does. */
  load(): Promise<LoraAdapter>
  /** Loads the adapter only for running it. A plain LoRA then needs none of the code that computes with layers. */
  loadToRun(): Promise<RunAdapter>
  /** Reads a part with its values. Throws NumericError if a value is not finite, and FileError. */
  read(name: string): Promise<AdapterPart>
  close(): Promise<void>
}

/** Options of `loadAdapter`. */
export interface LoadOptions {
  /** Name of the adapter: a subfolder, or a name in the tensor names. Needed only if there are several adapters. */
  name?: string | undefined
}

export interface OpenOptions extends LoadOptions {
  /** Opens the sound parts and returns the problems, instead of throwing the first problem. */
  isTolerant?: boolean | undefined
}

/** Opens an adapter, and checks everything except the values, which are read later. */
export async function openAdapter(source: LoraAdapter | Directory, options: OpenOptions = {}): Promise<OpenAdapter> {
  return isAdapter(source) ? openInMemory(source) : openFolder(source, options)
}

/** Opens an adapter, and refuses it if its init changed the base. `use` names the intended use in the error. */
export async function openForUse(source: LoraAdapter | Directory, use: string): Promise<OpenAdapter> {
  return closingOnError(await openAdapter(source, {}), async (opened) => {
    ;(await import('../requirements.js')).requireUnchangedBase(opened, use)
    return opened
  })
}

function openInMemory(adapter: LoraAdapter): OpenAdapter {
  const parts = adapter.parts().map(viewOf)
  const { config, notes, chatTemplate, prompts, trainedOn } = adapter
  return {
    name: 'adapter',
    config,
    notes,
    meaning: adapter,
    chatTemplate,
    prompts,
    trainedOn,
    problems: [],
    parts: () => parts,
    dtypeOf: ({ name }) => adapter.get(name)!.dtype as FloatDtype,
    load: async () => adapter,
    loadToRun: async () => adapter,
    read: async (name) => adapter.get(name)!,
    close: async () => {},
  }
}

/** Describes a part in memory. Its tensors are made only when somebody asks for them, without a copy if possible. */
function viewOf(part: AdapterPart): OpenPart {
  const { kind, name, module } = part
  const fields =
    part.kind === 'replacement'
      ? { key: part.key, isTrained: part.isTrained }
      : part.kind === 'token-rows'
        ? { indices: part.indices }
        : { config: part.config, ...(part.kind === 'parameter' && { experts: part.experts }) }
  const view = {
    ...{ kind, name, module },
    ...fields,
    get tensors() {
      const tensors: [string, Tensor | StoredTensor][] = tensorsOf(part as { tensors: { weight: StoredTensor } })
      const nameOf = (role: string) => {
        return part.kind === 'replacement' ? name : `${part.kind === 'token-rows' ? module : name}.${role}`
      }
      return Object.fromEntries(tensors.map(([role, tensor]) => [role, tensorInMemory(nameOf(role), tensor)]))
    },
  }
  return view as unknown as OpenPart
}

function tensorInMemory(name: string, { data, shape, ...stored }: Tensor | StoredTensor): AdapterTensor {
  const isDouble = (data as unknown) instanceof Float64Array
  const dtype = 'dtype' in stored ? stored.dtype : isDouble ? 'fp64' : 'fp32'
  const bytes = data instanceof Uint8Array ? data : encodeWeights(data, dtype as 'fp64' | 'fp32')
  return { name, dtype, shape, offset: 0, byteLength: bytes.byteLength, source: new MemorySource(bytes, name) }
}

async function openFolder(directory: Directory, { name, isTolerant = false }: OpenOptions): Promise<OpenAdapter> {
  const folder = await findAdapter(directory, name)
  const { bytes, file: configFile } = await readConfig(folder)
  const { config, problems, unknown } = parsePeftConfig(bytes, configFile)
  const asides = unknown.map(({ message }) => message)
  if (!isTolerant) throwFirst(problems)
  const opened = await openWeights(folder)
  const close = () => opened.source.close()
  return closingOnError({ close }, async () => {
    const { tensors, notes: keyNotes } = normalizeKeys(opened, name)
    const [chatTemplate, prompts, trainedOn] = await Promise.all([
      readChatTemplate(folder.directory, folder.path),
      readNamedPrompts(folder.directory, folder.path),
      readBaseRecord(folder.directory, folder.path),
    ])
    const isInside = name === undefined && folder.path !== ''
    const { notes: meaningNotes, ...meaning } = readMeaning(opened.metadata)
    const inside = isInside ? [`an adapter in ${folder.path}, its only one`] : []
    const claimed = await claimTensors(tensors, config, opened.source.name)
    const { parts } = claimed
    const all = [...problems, ...claimed.problems]
    if (!isTolerant) throwFirst(all)
    const notes = [...inside, ...asides, ...keyNotes, ...claimed.notes, ...meaningNotes]
    const byName = new Map(parts.map((part) => [part.name, part]))
    const load = async () => {
      const adapter = await emptyAdapter(config)
      adapter.notes.push(...notes)
      Object.assign(adapter, meaning, { chatTemplate, prompts, trainedOn })
      for (const part of parts) await addPart(adapter, part)
      return adapter
    }
    return {
      name: directory.name,
      config,
      notes,
      meaning,
      chatTemplate,
      prompts,
      trainedOn,
      problems: all,
      parts: () => parts,
      dtypeOf: commonDtype,
      async loadToRun() {
        if (!isPlain({ config, parts: () => parts })) return load()
        const layers = parts.map(async (part) => {
          const { name: layer, config: layerConfig, tensors: factors } = part as FactorView<AdapterTensor>
          const [a, b] = [await readFactor(factors.weightA), await readFactor(factors.weightB)]
          return linearValues(layer, layerConfig, a as Matrix, b as Matrix)
        })
        return plainAdapter({ config, chatTemplate, prompts, trainedOn }, await Promise.all(layers))
      },
      load,
      read: async (part) => {
        const scratch = await emptyAdapter(config)
        await addPart(scratch, byName.get(part)!)
        return scratch.get(part)!
      },
      close,
    }
  })
}

async function emptyAdapter(config: LoraConfig): Promise<LoraAdapter> {
  return new (await import('../adapter.js')).LoraAdapter(config)
}

function throwFirst([first]: readonly LowrankError[]): void {
  if (first !== undefined) throw first
}

function commonDtype(part: OpenPart): FloatDtype {
  const [first, ...others] = tensorsOf(part).map(([, { dtype }]) => dtype)
  return isFloatDtype(first) && others.every((dtype) => dtype === first) ? first : 'fp32'
}

async function addPart(adapter: LoraAdapter, part: OpenPart): Promise<void> {
  if (part.kind === 'replacement' || part.kind === 'token-rows') {
    adapter.addPart({ ...part, tensors: { weight: await readStored(part.tensors.weight) } })
    return
  }
  const { weightA, weightB, magnitude, biasB } = part.tensors
  const tensors = {
    weightA: await readFactor(weightA),
    weightB: await readFactor(weightB),
    magnitude: magnitude && (await readFactor(magnitude)),
    biasB: biasB && (await readFactor(biasB)),
  }
  adapter.addPart({ ...part, tensors, dtype: commonDtype(part) })
}

export async function readFactor(info: AdapterTensor): Promise<Tensor> {
  const { source, name } = info
  const tensor = await readTensorF32({ source, tensors: new Map([[name, info]]), metadata: {} }, name)
  if (isAllFinite(tensor.data)) return tensor
  throw notFinite(tensorPlace(info))
}

/** Reads a tensor without decoding its bytes. Throws as {@link readFactor} does. */
async function readStored(info: AdapterTensor): Promise<StoredTensor> {
  const { source, dtype, shape, offset, byteLength } = info
  const data = await source.read(offset, byteLength)
  if (isFiniteStored(data, dtype)) return { dtype, shape, data }
  throw notFinite(tensorPlace(info))
}

const PIECE_BYTES = 1 << 22

/** Reads a tensor piece by piece, and returns an error if a value is not finite. */
export async function valueProblems(info: AdapterTensor): Promise<LowrankError[]> {
  const { source, dtype, offset, byteLength } = info
  for (let at = 0; at < byteLength; at += PIECE_BYTES) {
    const bytes = await source.read(offset + at, Math.min(PIECE_BYTES, byteLength - at))
    if (!isFiniteStored(bytes, dtype)) return [notFinite(tensorPlace(info))]
  }
  return []
}

export function tensorPlace({ name, source }: AdapterTensor): string {
  return source.name === name ? name : `${source.name}: ${name}`
}
