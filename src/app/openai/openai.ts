// OpenAI: the routes of its API reference that an owner can read, and its fine-tuning jobs.

import { isObject } from '../../core/base/options.js'
import { checkAddress } from '../../core/base/post-json.js'
import {
  FILES,
  type Item,
  type Job,
  type Method,
  numberOr,
  type Provider,
  type Route,
  requireKey,
  textOr,
} from './provider.js'

const hasEnded = ({ status }: Item) =>
  ['succeeded', 'failed', 'cancelled', 'completed', 'expired'].includes(String(status))

const ROUTES: readonly Route[] = [
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
  ...FILES,
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

function jobOf(item: Item): Job | undefined {
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
