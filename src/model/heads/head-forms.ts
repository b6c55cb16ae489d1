// Finds a model's head for labels: the head that transformers gives this type of model (families/), or the one in the
// graph.

import { UnsupportedError } from '../../core/base/errors.js'
import { headOf } from '../families/families.js'
import type { HeadForm, HeadKind } from '../families/family.js'
import { TASK_TYPES } from '../families/heads.js'
import { inputFamily } from '../inputs/family.js'
import type { HeadBase } from './heads.js'

const KINDS = {
  text: { rows: 'first', reads: undefined },
  token: { rows: 'all', reads: undefined },
  image: { rows: 'first', reads: 'pictures' },
} as const

export const HEAD_KINDS = Object.keys(KINDS) as readonly HeadKind[]

/** Finds the head that an adapter of this type brings, or undefined if it brings none. */
export function headOfType(taskType: string | undefined, base: HeadBase): HeadForm | undefined {
  const kind = HEAD_KINDS.find((name) => TASK_TYPES[name] === taskType)
  return kind && findHead(kind, base)
}

export function findHead(kind: HeadKind, base: HeadBase): HeadForm | undefined {
  const { reads, rows } = KINDS[kind]
  if (reads !== undefined && inputFamily(base.graph)?.reads !== reads) return undefined
  const known = headOf(base.config, kind)
  const { pad_token_id: pad } = base.config
  if (known?.rows === 'last' && typeof pad === 'number') return { ...known, padTokenId: pad }
  if (known !== undefined) return known
  const layer = base.linears.find(({ name, isHead }) => isHead && /^(classifier|score)$/.test(name))
  return layer && { encoder: '', rows, layers: [{ module: layer.name }], modulesToSave: [layer.name] }
}

export function requireHead(kind: HeadKind, base: HeadBase): HeadForm {
  const found = findHead(kind, base)
  if (found !== undefined) return found
  throw new UnsupportedError({
    where: 'model_type',
    what: 'the head that this type of model has for classification is not known',
    got: String(base.config.model_type),
    hint: `Export the model with its head: optimum-cli export onnx --task ${kind}-classification`,
  })
}
