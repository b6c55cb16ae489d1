// Where replaced tensors and rows go in a checkpoint: the base's tensor of that name, in its type and shape.

import { MismatchError, nearMisses, UnsupportedError } from '../../base/errors.js'
import { formatShape } from '../../base/tensor.js'
import type { Checkpoint } from '../../formats/checkpoint.js'
import { isWeightDtype, type TensorInfo } from '../../formats/safetensors.js'
import type { BaseReplacement } from './adapters.js'
import type { OutputTensor } from './layout.js'
import { type TiedPair, type TiedPolicy, tiedError } from './tied.js'

/**
 * @param locate module name → the name that the checkpoint has for it
 * @param pair tied embeddings that a replacement touches
 * @param isUntied the output has both of them
 * @returns by tensor of the output, what it has in place of the base's own
 * @throws MismatchError when the base has no such tensor, or another shape of it, or it is one of tied embeddings;
 *   UnsupportedError when two replace one tensor
 */
export function placeReplacements(
  replacements: readonly BaseReplacement[],
  locate: (name: string) => string,
  checkpoint: Checkpoint,
  pair: TiedPair | undefined,
  tied: TiedPolicy,
  isUntied = false,
): Map<string, Pick<OutputTensor, 'base' | 'shard'> | Pick<OutputTensor, 'rows'>> {
  const { tensors, shards } = checkpoint
  const result = new Map<string, Pick<OutputTensor, 'base' | 'shard'> | Pick<OutputTensor, 'rows'>>()
  for (const { tensor, source, info, rows, isTied } of replacements) {
    const name = locate(tensor)
    const isPaired = pair !== undefined && (name === pair.head || name === pair.embedding)
    if (isPaired && rows === undefined && tied === 'refuse' && !isTied) throw tiedError(pair, tensors.has(pair.head))
    const isRepeated =
      isTied &&
      !isUntied &&
      name === pair?.head &&
      replacements.some((other) => locate(other.tensor) === pair.embedding)
    if (isRepeated) continue
    const isIn = (own: string) => tensors.has(own) || (isUntied && own === pair?.head)
    // Rows of tied embeddings are tied in PEFT too: both uses see them. A whole module is a copy of its own there.
    const isBoth = isPaired && (rows !== undefined || !isUntied)
    for (const own of isBoth ? [pair.embedding, pair.head].filter(isIn) : [name]) {
      const base = (tensors.get(own) ?? (isPaired && isIn(own) ? tensors.get(pair.embedding) : undefined))?.info
      if (base === undefined) throw missingError(own, tensors.keys())
      checkFit(own, base, info, rows)
      if (result.has(own))
        throw new UnsupportedError({ where: own, what: 'two parts of the adapters replace its values' })
      const shard = shards.length + source
      const rowBytes = info.byteLength / Math.max(1, info.shape[0] ?? 1)
      result.set(
        own,
        rows === undefined
          ? { base: info, shard }
          : {
              rows: rows.map((index, i) => {
                return { index, dtype: info.dtype, shard, offset: info.offset + i * rowBytes, byteLength: rowBytes }
              }),
            },
      )
    }
  }
  return result
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
