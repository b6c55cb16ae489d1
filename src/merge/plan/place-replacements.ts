// Where replaced tensors and rows go in a checkpoint: the base's tensor of that name, in its type and shape.

import { isWeightDtype } from '../../base/dtype.js'
import { MismatchError, nearMisses, UnsupportedError } from '../../base/errors.js'
import { elementCount, formatShape } from '../../base/tensor.js'
import type { Checkpoint } from '../../formats/checkpoint.js'
import type { TensorInfo } from '../../formats/safetensors.js'
import type { BaseReplacement } from './adapters.js'
import type { OutputTensor } from './layout.js'
import type { CheckpointNames } from './names/choose.js'
import { isPlain, unknownForm } from './names/forms.js'
import type { StoredForm } from './names/rules.js'
import { type TiedPair, type TiedPolicy, tiedError } from './tied.js'

type Placed = Pick<OutputTensor, 'base' | 'shard' | 'isReplaced'> | Pick<OutputTensor, 'rows'>

/** Where replacements go. */
interface Placing {
  readonly names: CheckpointNames
  readonly checkpoint: Checkpoint
  /** Tied embeddings that a replacement touches. */
  readonly pair: TiedPair | undefined
  readonly tied: TiedPolicy
  /** The output has both of the pair. */
  readonly isUntied: boolean
}

/**
 * @returns by tensor of the output, what it has in place of the base's own
 * @throws MismatchError when the base has no such tensor, or another shape of it, or it is one of tied embeddings;
 *   UnsupportedError when two replace one tensor
 */
export function placeReplacements(replacements: readonly BaseReplacement[], placing: Placing): Map<string, Placed> {
  const { names, checkpoint, pair, tied } = placing
  const { locate } = names
  const { tensors, shards } = checkpoint
  const result = new Map<string, Placed>()
  for (const replacement of replacements) {
    const { tensor, source, info, rows, isTied } = replacement
    const name = locate(tensor)
    const isPaired = pair !== undefined && (name === pair.head || name === pair.embedding)
    if (isPaired && tied === 'refuse' && !isTied) throw tiedError(pair, tensors.has(pair.head))
    const form = names.form(tensor)
    if (form === undefined) throw unknownForm(tensor)
    if (!isPlain(form)) {
      for (const [own, placed] of placeForm(replacement, form, checkpoint)) addTo(result, own, placed)
      continue
    }
    for (const own of targetsOf(replacement, replacements, placing)) {
      const stored =
        tensors.get(own) ?? (isPaired && isInOutput(own, placing) ? tensors.get(pair.embedding) : undefined)
      if (stored === undefined) throw missingError(own, tensors.keys())
      checkFit(own, stored.info, info, rows)
      addTo(result, own, placedAt(shards.length + source, info, rows))
    }
  }
  return result
}

/** Rows of one tensor that belong to several of the model's come together. */
function addTo(result: Map<string, Placed>, tensor: string, placed: Placed): void {
  const before = result.get(tensor)
  const isApart = before !== undefined && 'rows' in before && 'rows' in placed
  const taken = new Set(isApart ? before.rows.map(({ index }) => index) : [])
  if (before !== undefined && (!isApart || placed.rows.some(({ index }) => taken.has(index)))) {
    throw new UnsupportedError({ where: tensor, what: 'two parts of the adapters replace its values' })
  }
  result.set(tensor, isApart ? { rows: [...before.rows, ...placed.rows] } : placed)
}

/** A tensor that the checkpoint has as rows of a larger one, or in several. */
function placeForm(
  { tensor, source, info, rows }: BaseReplacement,
  { tensors: names, isTurned, share }: StoredForm,
  { tensors, shards }: Checkpoint,
): [string, Placed][] {
  if (isTurned || rows !== undefined) throw unknownForm(tensor)
  const shard = shards.length + source
  if (share !== undefined) {
    const stored = tensors.get(names[0])!.info
    const [first, count] = [(stored.shape[0] * share.first) / share.total, (stored.shape[0] * share.rows) / share.total]
    const indices = Array.from({ length: count }, (_, i) => first + i)
    checkFit(names[0], stored, info, indices)
    return [[names[0], placedAt(shard, info, indices)]]
  }
  const isStack = names[0].includes('*')
  const all = Array.from({ length: isStack ? info.shape[0] : 1 }, (_, i) => {
    return names.map((name) => name.replace('*', String(i)))
  }).flat()
  let { offset } = info
  const placed = all.map((name): [string, Placed] => {
    const stored = tensors.get(name)?.info
    if (stored === undefined) throw missingError(name, tensors.keys())
    // The same values in the adapter's type, in the order of the parts.
    const byteLength = (info.byteLength / elementCount(info.shape)) * elementCount(stored.shape)
    const own = { ...info, shape: stored.shape, offset, byteLength }
    checkFit(name, stored, own, undefined)
    offset += byteLength
    return [name, placedAt(shard, own, undefined)]
  })
  if (offset !== info.offset + info.byteLength) checkFit(tensor, { ...info, shape: [all.length] }, info, undefined)
  return placed
}

/** The tensors of the output that get a replacement's values: both of tied ones, none where another part is for both. */
function targetsOf(
  { tensor, rows, isTied }: BaseReplacement,
  replacements: readonly BaseReplacement[],
  placing: Placing,
): string[] {
  const { names, pair, isUntied } = placing
  const { locate } = names
  const name = locate(tensor)
  if (pair === undefined || (name !== pair.head && name !== pair.embedding)) return [name]
  const isRepeated =
    isTied && !isUntied && name === pair.head && replacements.some((other) => locate(other.tensor) === pair.embedding)
  if (isRepeated) return []
  // A whole module is a copy of its own in PEFT, as rows are that are not for both uses.
  if (isUntied && (rows === undefined || !isTied)) return [name]
  return [pair.embedding, pair.head].filter((own) => isInOutput(own, placing))
}

function isInOutput(tensor: string, { checkpoint, pair, isUntied }: Placing): boolean {
  return checkpoint.tensors.has(tensor) || (isUntied && tensor === pair?.head)
}

/** @param shard that holds the new values, at `info` */
function placedAt(shard: number, info: TensorInfo, rows: readonly number[] | undefined): Placed {
  if (rows === undefined) return { base: info, shard, isReplaced: true }
  const rowBytes = info.byteLength / Math.max(1, info.shape[0] ?? 1)
  return {
    rows: rows.map((index, i) => {
      return { index, dtype: info.dtype, shard, offset: info.offset + i * rowBytes, byteLength: rowBytes }
    }),
  }
}

function missingError(name: string, tensors: Iterable<string>): MismatchError {
  const near = nearMisses(name, tensors)
  return new MismatchError({
    where: name,
    what: 'the adapter replaces this tensor, which the base does not have',
    ...(near.length > 0 && { hint: `Nearest: ${near.join(', ')}` }),
  })
}

function checkFit(name: string, base: TensorInfo, info: TensorInfo, rows: readonly number[] | undefined): void {
  const shape = rows === undefined ? base.shape : [rows.length, ...base.shape.slice(1)]
  if (formatShape(shape) !== formatShape(info.shape)) {
    throw new MismatchError({
      where: name,
      what: 'the adapter has other values in place of this tensor, in another shape',
      expected: formatShape(shape),
      got: formatShape(info.shape),
      hint: 'Its base had another vocabulary or is another model',
    })
  }
  const outside = rows?.find((row) => row >= base.shape[0])
  if (outside !== undefined) {
    throw new MismatchError({ where: name, what: `no row ${outside} to replace`, expected: `below ${base.shape[0]}` })
  }
  if (info.dtype === base.dtype || (isWeightDtype(info.dtype) && isWeightDtype(base.dtype))) return
  throw new MismatchError({
    where: name,
    what: 'the adapter has another type of values in place of this tensor',
    expected: base.dtype,
    got: info.dtype,
  })
}
