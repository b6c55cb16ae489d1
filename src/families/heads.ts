// Heads that several families have.

import type { HeadForm, HeadLayer } from './family.js'

/** One layer over the last token of a text. */
export function score(encoder: string): HeadForm {
  return { encoder, rows: 'last', layers: [{ module: 'score', hasBias: false }], modulesToSave: ['score'] }
}

/** One layer over each token. */
export function words(encoder: string): HeadForm {
  return { encoder, rows: 'all', layers: [{ module: 'classifier' }], modulesToSave: ['classifier'] }
}

/** A head with one layer between the first token and the classifier, outside of the classifier's module. */
export function pooled(encoder: string, module: string, activation: HeadLayer['activation']): HeadForm {
  const name = module.replace(`${encoder}.`, '').replace(/\.dense$/, '')
  const layers = [{ module, activation }, { module: 'classifier' }]
  return { encoder, rows: 'first', layers, modulesToSave: ['classifier', name] }
}

/** The same with both layers in the classifier's module. */
export function dense(encoder: string, activation: HeadLayer['activation']): HeadForm {
  const layers = [{ module: 'classifier.dense', activation }, { module: 'classifier.out_proj' }]
  return { encoder, rows: 'first', layers, modulesToSave: ['classifier'] }
}

/** A layer over the first token of a picture, or over it and the mean of the others. */
export function image(encoder: string, name: string, rows: HeadForm['rows'] = 'first'): HeadForm {
  const architecture = `${name}ForImageClassification`
  return { encoder, rows, layers: [{ module: 'classifier' }], modulesToSave: ['classifier'], architecture }
}
