// The names that a pickle by torch.save may use (torch/_utils.py). A rebuilt tensor is a view of a storage.

import type { TensorDtype } from '../../base/dtype.js'
import { FormatError, UnsupportedError } from '../../base/errors.js'
import { elementCount, formatShape } from '../../base/tensor.js'
import { PickleDict, PickleGlobal, type PickleHost, PickleObject, PickleTuple, type PickleValue } from './pickle.js'

/** As many as torch's own kernels take. */
const MAX_DIMS = 64

interface TorchType {
  readonly dtype: TensorDtype
  readonly bytes: number
}

const STORAGES: ReadonlyMap<string, TorchType> = new Map([
  ['torch.FloatStorage', { dtype: 'fp32', bytes: 4 }],
  ['torch.HalfStorage', { dtype: 'fp16', bytes: 2 }],
  ['torch.BFloat16Storage', { dtype: 'bf16', bytes: 2 }],
  ['torch.DoubleStorage', { dtype: 'fp64', bytes: 8 }],
  ['torch.LongStorage', { dtype: 'I64', bytes: 8 }],
  ['torch.IntStorage', { dtype: 'I32', bytes: 4 }],
  ['torch.ShortStorage', { dtype: 'I16', bytes: 2 }],
  ['torch.CharStorage', { dtype: 'I8', bytes: 1 }],
  ['torch.ByteStorage', { dtype: 'U8', bytes: 1 }],
  ['torch.BoolStorage', { dtype: 'BOOL', bytes: 1 }],
  ['torch.ComplexFloatStorage', { dtype: 'C64', bytes: 8 }],
  ['torch.storage.UntypedStorage', { dtype: 'U8', bytes: 1 }],
])

/** Types that have no storage class of their own: `_rebuild_tensor_v3` names them beside an untyped storage. */
const DTYPES: ReadonlyMap<string, TorchType> = new Map([
  ['torch.float8_e4m3fn', { dtype: 'F8_E4M3', bytes: 1 }],
  ['torch.float8_e5m2', { dtype: 'F8_E5M2', bytes: 1 }],
  ['torch.float8_e4m3fnuz', { dtype: 'F8_E4M3FNUZ', bytes: 1 }],
  ['torch.float8_e5m2fnuz', { dtype: 'F8_E5M2FNUZ', bytes: 1 }],
  ['torch.uint16', { dtype: 'U16', bytes: 2 }],
  ['torch.uint32', { dtype: 'U32', bytes: 4 }],
  ['torch.uint64', { dtype: 'U64', bytes: 8 }],
])

/** A block of memory that tensors share, known by its key. */
export class TorchStorage extends PickleObject {
  readonly kind = 'storage'

  /** `length` in elements of its type. */
  constructor(
    readonly key: string,
    readonly type: TorchType,
    readonly length: number,
  ) {
    super()
  }

  get byteLength(): number {
    return this.length * this.type.bytes
  }
}

/** Offset and strides count elements of the tensor's type. */
export class TorchTensor extends PickleObject {
  readonly kind = 'tensor'

  constructor(
    readonly storage: TorchStorage,
    readonly type: TorchType,
    readonly offset: number,
    readonly shape: readonly number[],
    readonly strides: readonly number[],
  ) {
    super()
  }

  /** Its elements follow one another in row-major order. */
  get isContiguous(): boolean {
    let expected = 1
    for (let i = this.shape.length - 1; i >= 0; i--) {
      if (this.shape[i] !== 1 && this.strides[i] !== expected) return false
      expected *= this.shape[i]
    }
    return true
  }
}

export class TorchHost implements PickleHost {
  readonly storages = new Map<string, TorchStorage>()
  readonly #globals: ReadonlyMap<string, PickleGlobal>

  constructor() {
    const functions: Record<string, PickleGlobal['call']> = {
      'collections.OrderedDict'(args, where) {
        if (args.length === 0) return new PickleDict(true)
        throw new FormatError({ where, what: 'an OrderedDict with arguments, which torch does not save' })
      },
      'torch._utils._rebuild_tensor_v2': (args, where) => rebuildTensor(args, 6, where),
      'torch._utils._rebuild_tensor_v3': (args, where) => rebuildTensor(args, 7, where),
      'torch._utils._rebuild_parameter': rebuildParameter,
    }
    const names = [...Object.keys(functions), ...STORAGES.keys(), ...DTYPES.keys()]
    this.#globals = new Map(names.map((name) => [name, new PickleGlobal(name, functions[name])]))
  }

  global(name: string): PickleGlobal | undefined {
    return this.#globals.get(name)
  }

  /** ('storage', class, key, device, length) */
  persistent(id: PickleValue, where: string): TorchStorage {
    const items = id instanceof PickleTuple ? id.items : []
    const [tag, storageClass, key, device, length] = items
    const type = storageClass instanceof PickleGlobal ? STORAGES.get(storageClass.name) : undefined
    if (
      items.length !== 5 ||
      tag !== 'storage' ||
      type === undefined ||
      typeof key !== 'string' ||
      typeof device !== 'string' ||
      !isSize(length) ||
      !isSize(length * type.bytes)
    ) {
      throw new FormatError({ where, what: 'a persistent id that is not a storage of torch' })
    }
    const known = this.storages.get(key)
    if (known === undefined) {
      const storage = new TorchStorage(key, type, length)
      this.storages.set(key, storage)
      return storage
    }
    if (known.type !== type || known.length !== length) {
      throw new FormatError({
        where,
        what: `the storage ${JSON.stringify(key).slice(0, 100)} has two types or sizes`,
        expected: `${known.length} × ${known.type.dtype}`,
        got: `${length} × ${type.dtype}`,
      })
    }
    return known
  }
}

/** (storage, offset, size, stride, requires_grad, hooks[, dtype][, metadata]) */
function rebuildTensor(args: readonly PickleValue[], count: 6 | 7, where: string): TorchTensor {
  const [storage, offset, size, stride, , hooks] = args
  const metadata = args[count] ?? null
  if (args.length < count || args.length > count + 1) {
    throw new FormatError({ where, what: 'a tensor with another number of arguments', got: `${args.length}` })
  }
  if (!(storage instanceof TorchStorage)) throw new FormatError({ where, what: 'a tensor without a storage' })
  checkExtras(hooks, metadata, where)
  let type = storage.type
  if (count === 7) {
    const dtype = args[6]
    const found = dtype instanceof PickleGlobal ? DTYPES.get(dtype.name) : undefined
    if (found === undefined) throw new FormatError({ where, what: 'a tensor of a type that torch does not have' })
    type = found
  }
  const shape = sizesOf(size, where)
  const strides = sizesOf(stride, where)
  const last = shape.reduce((sum, dim, i) => sum + (dim - 1) * (strides[i] ?? 0), 0)
  const end = (first: number) => (shape.includes(0) ? first : first + last + 1) * type.bytes
  const isSized = strides.length === shape.length && isSize(elementCount(shape) * type.bytes)
  if (!isSize(offset) || !isSized || !(end(offset) <= storage.byteLength)) {
    throw new FormatError({
      where,
      what: 'a tensor that does not lie inside its storage',
      expected: `at most ${storage.byteLength} bytes`,
      got: `shape ${formatShape(shape)}, strides ${formatShape(strides)}`,
    })
  }
  return new TorchTensor(storage, type, offset, shape, strides)
}

/** (tensor, requires_grad, hooks) */
function rebuildParameter(args: readonly PickleValue[], where: string): TorchTensor {
  const [tensor, , hooks] = args
  if (args.length !== 3 || !(tensor instanceof TorchTensor))
    throw new FormatError({ where, what: 'a parameter without a tensor' })
  checkExtras(hooks, null, where)
  return tensor
}

/** Hooks would be functions; metadata say that values are to be conjugated or negated. */
function checkExtras(hooks: PickleValue, metadata: PickleValue, where: string): void {
  for (const [value, what] of [
    [hooks, 'hooks'],
    [metadata, 'metadata (a conjugate or negative view)'],
  ] as const) {
    if (value === null || (value instanceof PickleDict && value.entries.size === 0)) continue
    throw new UnsupportedError({ where, what: `a tensor with ${what}` })
  }
}

function sizesOf(value: PickleValue, where: string): number[] {
  if (value instanceof PickleTuple && value.items.length <= MAX_DIMS && value.items.every(isSize)) {
    return value.items as number[]
  }
  throw new FormatError({ where, what: `a tensor without a tuple of at most ${MAX_DIMS} sizes` })
}

function isSize(value: unknown): value is number {
  return Number.isSafeInteger(value) && (value as number) >= 0
}
