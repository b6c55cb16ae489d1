// OpenAI: the routes of its API reference that an owner can read, and its fine-tuning jobs.

import { ConfigError } from '../../core/base/errors.js'
import { isObject } from '../../core/base/options.js'
import { checkAddress } from '../../core/base/post-json.js'
import type { Item, Job, Method, Provider, Route } from './provider.js'

const hasEnded = ({ status }: Item) =>
  ['succeeded', 'failed', 'cancelled', 'completed', 'expired'].includes(String(status))

export const ROUTES: readonly Route[] = [
  { name: 'jobs', path: '/fine_tuning/jobs' },
  { name: 'events', path: '/fine_tuning/jobs/{id}/events', of: 'jobs', isFinal: hasEnded },
  { name: 'checkpoints', path: '/fine_tuning/jobs/{id}/checkpoints', of: 'jobs', isFinal: hasEnded },
  { name: 'files', path: '/files' },
  { name: 'batches', path: '/batches' },
  { name: 'completions', path: '/chat/completions' },
  { name: 'messages', path: '/chat/completions/{id}/messages', of: 'completions', isFinal: () => true },
  { name: 'models', path: '/models', isWhole: true },
  { name: 'evals', path: '/evals' },
  { name: 'runs', path: '/evals/{id}/runs', of: 'evals' },
  { name: 'output-items', path: '/evals/{of}/runs/{id}/output_items', of: 'runs', isFinal: hasEnded },
]

export const openai: Provider = {
  name: 'openai',
  routes: ROUTES,
  files: 'files',
  jobs: 'jobs',
  filesOf: {
    jobs: ['training_file', 'validation_file', 'result_files'],
    batches: ['input_file_id', 'output_file_id', 'error_file_id'],
  },
  contentOf: (id) => `/files/${encodeURIComponent(id)}/content`,
  connect({ OPENAI_API_KEY, OPENAI_BASE_URL, OPENAI_ORG_ID, OPENAI_PROJECT_ID }) {
    return {
      url: checkAddress(OPENAI_BASE_URL || 'https://api.openai.com/v1', 'OPENAI_BASE_URL'),
      headers: {
        authorization: `Bearer ${requireKey('OPENAI_API_KEY', OPENAI_API_KEY)}`,
        ...(OPENAI_ORG_ID && { 'openai-organization': OPENAI_ORG_ID }),
        ...(OPENAI_PROJECT_ID && { 'openai-project': OPENAI_PROJECT_ID }),
      },
    }
  },
  jobOf,
}

export function requireKey(name: string, key: string | undefined): string {
  if (key) return key
  throw new ConfigError({ where: name, what: 'no key', hint: `Set ${name} in the environment` })
}

/** Azure has the same jobs. */
export function jobOf(item: Item): Job | undefined {
  const { id, fine_tuned_model: model, method, hyperparameters: old, seed, finished_at: finishedAt } = item
  if (id === undefined || typeof model !== 'string') return undefined
  const { type = 'supervised', ...settings } = isObject(method) ? method : {}
  const own = settings[String(type)]
  const { grader, response_format: format, hyperparameters = old } = isObject(own) ? own : {}
  const { n_epochs: epochs } = isObject(hyperparameters) ? hyperparameters : {}
  return {
    id,
    model,
    base: String(item.model),
    method: type as Method,
    trainingFile: String(item.training_file),
    validationFile: textOr(item.validation_file),
    epochs: numberOr(epochs),
    seed: numberOr(seed),
    grader: isObject(grader) ? grader : undefined,
    responseFormat: isObject(format) ? format : undefined,
    finishedAt: numberOr(finishedAt),
  }
}

export const numberOr = (value: unknown) => (typeof value === 'number' ? value : undefined)
export const textOr = (value: unknown) => (typeof value === 'string' && value !== '' ? value : undefined)
