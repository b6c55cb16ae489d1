// Finds the places of replaced tensors and rows in a checkpoint.

import { isWeightDtype, type TensorDtype } from '../../core/base/dtype.js'
import { attempt, didYouMean, MismatchError, UnsupportedError } from '../../core/base/errors.js'
import { elementCount, formatShape } from '../../core/base/tensor.js'
import type { Checkpoint } from '../../files/checkpoint.js'
import { isStoredDtype } from '../../files/gguf/blocks.js'
import type { TensorInfo } from '../../files/safetensors.js'
import type { BaseReplacement } from './adapters.js'
import type { BaseModel } from './base-model.js'
import type { FitProblems } from './fit-problems.js'
import type { OutputTensor } from './layout.js'
import { isPlain, unknownForm } from './names/forms.js'
import type { StoredForm } from './names/rules.js'
import { groupOf, type TieGroup, type Ties } from './names/ties.js'

export type Placed = Partial<Pick<OutputTensor, 'base' | 'source' | 'isReplaced' | 'rows' | 'columns'>>

export interface AddedTensor {
  readonly info: TensorInfo
  readonly source: number
  /** The type in which it is written: the type of most of the base's weights. */
  readonly dtype: TensorDtype
}

/**
 * Returns, for each tensor of the output, the values that replace the base's, and the tensors that the base does not
 * have. The members of `untied` become separate tensors in the output.
 */
export function placeReplacements(
  replacements: readonly BaseReplacement[],
  base: BaseModel,
  untied: readonly TieGroup[],
  fit: FitProblems,
) {
  const { checkpoint, names, ties, head } = base
  const { tensors } = checkpoint
  const placed = new Map<string, Placed>()
  const added = new Map<string, AddedTensor>()
  const place = (replacement: BaseReplacement) => {
    const { tensor, source, info, rows } = replacement
    if (isBuffer(tensor) && !tensors.has(names.locate(tensor))) return
    const form = names.form(tensor)
    if (form === undefined) throw unknownForm(tensor)
    if (!isPlain(form)) {
      for (const [name, placedPart] of placeForm(replacement, form, checkpoint)) addTo(placed, name, placedPart)
      return
    }
    for (const name of targetsOf(replacement, replacements, base, untied)) {
      const stored = tensors.get(name) ?? tensors.get(groupOf(ties, name)?.stored ?? name)
      if (stored !== undefined) {
        checkFit(name, stored.info, info, rows)
        addTo(placed, name, placedAt(source, info, rows))
        continue
      }
      if (rows !== undefined || head?.tensors.includes(tensor) !== true) throw missingError(name, tensors.keys())
      if (added.has(name)) throw twiceError(name)
      added.set(name, { info, source, dtype: addedDtype(info, checkpoint) })
    }
  }
  for (const replacement of replacements) {
    const [problem] = attempt(() => place(replacement)).problems
    if (problem !== undefined) fit.problems.push(problem)
    const { tensor: name, info } = replacement
    fit.parts.push({
      name,
      info: storedOf(name, base) ?? (problem === undefined ? { ...info, name } : undefined),
      problem,
    })
  }
  return { placed, added }
}

export function storedOf(tensor: string, { checkpoint: { tensors }, names, ties }: BaseModel): TensorInfo | undefined {
  const name = names.form(tensor)?.tensors[0].replace('*', '0') ?? tensor
  return (tensors.get(name) ?? tensors.get(groupOf(ties, name)?.stored ?? name))?.info
}

/** True for tensors that follow from the config, which some versions of transformers save. */
function isBuffer(tensor: string): boolean {
  return /(^|\.)(rotary_emb\.(original_)?inv_freq|position_ids)$/.test(tensor)
}

function addedDtype({ dtype }: TensorInfo, { tensors }: Checkpoint): TensorDtype {
  if (!isWeightDtype(dtype)) return dtype
  const counts = new Map<TensorDtype, number>()
  for (const { info } of tensors.values()) {
    if (isWeightDtype(info.dtype)) counts.set(info.dtype, (counts.get(info.dtype) ?? 0) + 1)
  }
  const most = Math.max(...counts.values())
  return [...counts].find(([, count]) => count === most)?.[0] ?? dtype
}

/** Returns the tensors that a replacement changes: all of a tied group, except those that another part replaces. */
function targetsOf(
  { tensor, rows, isTied }: BaseReplacement,
  replacements: readonly BaseReplacement[],
  { names, ties, checkpoint }: BaseModel,
  untied: readonly TieGroup[],
): readonly string[] {
  const name = names.locate(tensor)
  const group = groupOf(ties, name)
  if (group === undefined) return [name]
  const isUntied = untied.includes(group)
  const others = new Set(replacements.map((replacement) => names.locate(replacement.tensor)))
  others.delete(name)
  const inOutput = group.members.filter((member) => isUntied || checkpoint.tensors.has(member))
  if (group.isBias) {
    // Of tied biases, only the head's is used.
    const used = group.members.find((member) => isHeadBias(member, ties)) ?? group.stored
    if (isUntied)
      return name === used || others.has(used)
        ? [name]
        : inOutput.filter((member) => member === name || !others.has(member))
    return others.has(used) ? [] : inOutput
  }
  const earlier = group.members.slice(0, group.members.indexOf(name))
  if (isTied && !isUntied && earlier.some((member) => others.has(member))) return []
  // In PEFT a whole module is a separate copy, and so are rows that are not for both uses.
  return isUntied && (rows === undefined || !isTied) ? [name] : inOutput
}

function isHeadBias(name: string, ties: Ties): boolean {
  const group = name.endsWith('.bias') ? groupOf(ties, `${name.slice(0, -5)}.weight`) : undefined
  return group !== undefined && !group.isBias
}

function addTo(result: Map<string, Placed>, tensor: string, placed: Placed): void {
  result.set(tensor, joinPlaced(tensor, result.get(tensor), placed))
}

/**
 * Joins the rows of several replacements that are stored in one tensor, such as a packed or a tied weight. Throws
 * UnsupportedError if two of them replace the same row.
 */
export function joinPlaced(tensor: string, before: Placed | undefined, placed: Placed): Placed {
  if (before === undefined) return placed
  const taken = new Set(before.rows?.map(({ index }) => index))
  if (before.rows === undefined || placed.rows === undefined || placed.rows.some(({ index }) => taken.has(index))) {
    throw twiceError(tensor)
  }
  return { rows: [...before.rows, ...placed.rows] }
}

function twiceError(where: string): UnsupportedError {
  return new UnsupportedError({ where, what: 'two parts of the adapters replace its values' })
}

function placeForm(
  { tensor, source, info, rows }: BaseReplacement,
  { tensors: names, isTurned, share }: StoredForm,
  { tensors }: Checkpoint,
): [string, Placed][] {
  if (isTurned || rows !== undefined) throw unknownForm(tensor)
  if (share !== undefined) {
    const stored = tensors.get(names[0])!.info
    const [first, count] = [(stored.shape[0] * share.first) / share.total, (stored.shape[0] * share.rows) / share.total]
    const indices = Array.from({ length: count }, (_, i) => first + i)
    checkFit(names[0], stored, info, indices)
    return [[names[0], placedAt(source, info, indices)]]
  }
  const isStack = names[0].includes('*')
  const all = Array.from({ length: isStack ? info.shape[0] : 1 }, (_, i) => {
    return names.map((name) => name.replace('*', String(i)))
  }).flat()
  let { offset } = info
  const placed = all.map((name): [string, Placed] => {
    const stored = tensors.get(name)?.info
    if (stored === undefined) throw missingError(name, tensors.keys())
    // The checkpoint may store the replaced tensor as several. In the adapter they lie one after the other, in its own
    // type.
    const byteLength = (info.byteLength / elementCount(info.shape)) * elementCount(stored.shape)
    const grown = { ...info, shape: stored.shape, offset, byteLength }
    checkFit(name, stored, grown, undefined)
    offset += byteLength
    return [name, placedAt(source, grown, undefined)]
  })
  if (offset !== info.offset + info.byteLength) checkFit(tensor, { ...info, shape: [all.length] }, info, undefined)
  return placed
}

export function placedAt(source: number, info: TensorInfo, rows: readonly number[] | undefined): Placed {
  if (rows === undefined) return { base: info, source, isReplaced: true }
  const rowBytes = info.byteLength / Math.max(1, info.shape[0] ?? 1)
  return {
    rows: rows.map((index, i) => {
      return { index, dtype: info.dtype, source, offset: info.offset + i * rowBytes, byteLength: rowBytes }
    }),
  }
}

function missingError(name: string, tensors: Iterable<string>): MismatchError {
  return new MismatchError({
    where: name,
    what: 'the adapter replaces this tensor, which the base does not have',
    hint: didYouMean(name, tensors, 3),
  })
}

function checkFit(name: string, base: TensorInfo, info: TensorInfo, rows: readonly number[] | undefined): void {
  const shape = rows === undefined ? base.shape : [rows.length, ...base.shape.slice(1)]
  if (formatShape(shape) !== formatShape(info.shape)) {
    throw new MismatchError({
      where: name,
      what: 'the adapter replaces this tensor with one of another shape',
      expected: formatShape(shape),
      got: formatShape(info.shape),
      hint: 'Its base had another vocabulary or is another model',
    })
  }
  const outside = rows?.find((row) => row >= base.shape[0])
  if (outside !== undefined) {
    throw new MismatchError({ where: name, what: `no row ${outside} to replace`, expected: `below ${base.shape[0]}` })
  }
  if (info.dtype === base.dtype || (isWeightDtype(info.dtype) && isStoredDtype(base.dtype))) return
  throw new MismatchError({
    where: name,
    what: 'the adapter replaces this tensor with one of another type',
    expected: base.dtype,
    got: info.dtype,
  })
}
