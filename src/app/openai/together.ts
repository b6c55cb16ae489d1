// Together: whole lists instead of pages, jobs in its own words, and weights that can be downloaded.

import { isObject } from '../../core/base/options.js'
import { checkAddress } from '../../core/base/post-json.js'
import { FILES, type Item, type Job, numberOr, type Provider, requireKey, textOr } from './provider.js'

const hasEnded = ({ status }: Item) => ['completed', 'error', 'cancelled', 'user_error'].includes(String(status))

export const together: Provider = {
  name: 'together',
  routes: [
    { name: 'jobs', path: '/fine-tunes', isWhole: true },
    { name: 'events', path: '/fine-tunes/{id}/events', of: 'jobs', isWhole: true, isFinal: hasEnded },
    { name: 'checkpoints', path: '/fine-tunes/{id}/checkpoints', of: 'jobs', isWhole: true, isFinal: hasEnded },
    { name: 'files', path: '/files', isWhole: true },
    { name: 'batches', path: '/batches', isWhole: true },
    { name: 'models', path: '/models', isWhole: true },
  ],
  ...FILES,
  connect({ TOGETHER_API_KEY, TOGETHER_BASE_URL }) {
    return {
      url: checkAddress(TOGETHER_BASE_URL || 'https://api.together.xyz/v1', 'TOGETHER_BASE_URL'),
      headers: { authorization: `Bearer ${requireKey('TOGETHER_API_KEY', TOGETHER_API_KEY)}` },
    }
  },
  jobOf(item): Job | undefined {
    const { id, model_output_name: model, training_method: method, n_epochs: epochs } = item
    if (id === undefined || typeof model !== 'string' || item.status !== 'completed') return undefined
    const isDpo = isObject(method) && method.method === 'dpo'
    return {
      ...{ id, model, base: String(item.model), method: isDpo ? 'dpo' : 'supervised' },
      trainingFile: String(item.training_file),
      validationFile: textOr(item.validation_file),
      epochs: numberOr(epochs),
      seed: numberOr(item.random_seed),
      ...{ grader: undefined, responseFormat: undefined },
      finishedAt: Date.parse(String(item.updated_at)) / 1000 || undefined,
    }
  },
  weightsOf: ({ id, status, training_type: type }) => {
    const isAdapter = isObject(type) && type.type === 'Lora'
    if (status !== 'completed' || id === undefined) return undefined
    return `/finetune/download?ft_id=${encodeURIComponent(id)}${isAdapter ? '&checkpoint=adapter' : ''}`
  },
}
