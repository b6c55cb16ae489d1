// Heads that several families share.

import type { HeadForm, HeadKind, HeadLayer } from './family.js'

/** PEFT's task_type of the adapters that bring such a head. It has none for pictures. */
export const TASK_TYPES: Readonly<Record<HeadKind, string | undefined>> = {
  text: 'SEQ_CLS',
  token: 'TOKEN_CLS',
  image: undefined,
}

/** Makes a head that is a single layer over the last token. */
export function score(encoder: string): HeadForm {
  return { encoder, rows: 'last', layers: [{ module: 'score', hasBias: false }], modulesToSave: ['score'] }
}

export function words(encoder: string): HeadForm {
  return { encoder, rows: 'all', layers: [{ module: 'classifier' }], modulesToSave: ['classifier'] }
}

/** Two layers over the first token, the first in a separate module. */
export function pooled(encoder: string, module: string, activation: HeadLayer['activation']): HeadForm {
  const name = module.replace(`${encoder}.`, '').replace(/\.dense$/, '')
  const layers = [{ module, activation }, { module: 'classifier' }]
  return { encoder, rows: 'first', layers, modulesToSave: ['classifier', name] }
}

/** Two layers over the first token, both in the classifier's module. */
export function dense(encoder: string, activation: HeadLayer['activation']): HeadForm {
  const layers = [{ module: 'classifier.dense', activation }, { module: 'classifier.out_proj' }]
  return { encoder, rows: 'first', layers, modulesToSave: ['classifier'] }
}

/** A layer over the first token of a picture, or over it and the mean of the other tokens. */
export function image(encoder: string, name: string, rows: HeadForm['rows'] = 'first'): HeadForm {
  const architecture = `${name}ForImageClassification`
  return { encoder, rows, layers: [{ module: 'classifier' }], modulesToSave: ['classifier'], architecture }
}
