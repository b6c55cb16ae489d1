// The table of routes: path and method, who may call, the fields of the body, and the function that answers.

import {
  CHAT_FIELDS,
  CLASSIFY_FIELDS,
  COMPLETION_FIELDS,
  COUNT_FIELDS,
  DETOKENIZE_FIELDS,
  EMBEDDING_FIELDS,
  type FieldTable,
  INPUT_TOKENS_FIELDS,
  LOAD_FIELDS,
  MESSAGE_FIELDS,
  OLLAMA_CHAT_FIELDS,
  OLLAMA_EMBED_FIELDS,
  OLLAMA_EMBEDDINGS_FIELDS,
  OLLAMA_NAME_FIELDS,
  OLLAMA_TEXT_FIELDS,
  RERANK_FIELDS,
  RESPONSE_FIELDS,
  SCORE_FIELDS,
  TOKENIZE_FIELDS,
  UNLOAD_FIELDS,
} from './fields.js'
import { MESSAGES } from './forms/anthropic.js'
import { COMPLETIONS } from './forms/completions.js'
import { ALIAS_FIELDS, JOB_FIELDS, METADATA_FIELDS } from './jobs/fields.js'
import type { Right } from './keys.js'
import type { Call, Method } from './route.js'
import { ofJobs } from './routes/jobs.js'
import { listAliases, listModels, loadAdapter, unloadAdapter } from './routes/models.js'
import {
  loadedModels,
  ollamaChat,
  ollamaText,
  ollamaVectors,
  ollamaVersion,
  pull,
  show,
  tags,
} from './routes/ollama.js'
import { classification, embeddings, readingsBy, rerankingOf, scoring } from './routes/readings.js'
import { countInput, keptResponse, removeResponse, respond } from './routes/responses.js'
import { health, metrics, page, ready, version } from './routes/state.js'
import { chats, textsIn } from './routes/texts.js'
import { countTokens, detokenize, tokenize } from './routes/tokens.js'
import type { Serving } from './serving.js'

type Answer = (serving: Serving, call: Call) => Promise<Response> | Response

export interface Route {
  readonly right: Right
  /** Without a table, the route reads the body itself. */
  readonly fields?: FieldTable | undefined
  readonly answer: Answer
}

const get = (answer: Answer, right: Right = 'key') => ({ GET: { right, answer } })
const probe = (answer: Answer) => get(answer, 'anyone')
const post = (fields: FieldTable | undefined, answer: Answer, right: Right = 'key') => {
  return { POST: { right, fields, answer } }
}
type JobAnswer = Parameters<typeof ofJobs>[0]
const getJobs = (run: JobAnswer) => get(ofJobs(run))
const postJobs = (fields: FieldTable | undefined, run: JobAnswer, right?: Right) => post(fields, ofJobs(run), right)
const deleteJobs = (run: JobAnswer, right: Right = 'key') => ({ DELETE: { right, answer: ofJobs(run) } })
const models = get(listModels)
const labels = post(CLASSIFY_FIELDS, readingsBy(classification))
const pageFile = probe(page)

/** Path → method → route. `*` stands for any text. A path with `*` in its middle comes before one that ends with it. */
export const ROUTES: Readonly<Record<string, Readonly<Partial<Record<Method, Route>>>>> = {
  '/v1/files': {
    ...getJobs(({ files }, call) => files.list(call)),
    ...postJobs(undefined, (jobs, call) => jobs.createFile(call)),
  },
  '/v1/files/*/content': getJobs(({ files }, call) => files.content(call)),
  '/v1/files/*': {
    ...getJobs(({ files }, call) => files.retrieve(call)),
    ...deleteJobs(({ files }, call) => files.remove(call)),
  },
  '/v1/fine_tuning/jobs': {
    ...getJobs(({ queue }, call) => queue.list(call)),
    ...postJobs(JOB_FIELDS, ({ queue }, call) => queue.create(call)),
  },
  '/v1/fine_tuning/jobs/*/cancel': postJobs(undefined, ({ queue }, call) => queue.cancel(call)),
  '/v1/fine_tuning/jobs/*/pause': postJobs(undefined, ({ queue }, call) => queue.turn(call, true)),
  '/v1/fine_tuning/jobs/*/resume': postJobs(undefined, ({ queue }, call) => queue.turn(call, false)),
  '/v1/fine_tuning/jobs/*/events': getJobs(({ queue }, call) => queue.listEvents(call)),
  '/v1/fine_tuning/jobs/*/checkpoints': getJobs(({ queue }, call) => queue.listCheckpoints(call)),
  '/v1/fine_tuning/jobs/*': getJobs(({ queue }, call) => queue.get(call)),
  '/v1/chat/completions': {
    ...getJobs(({ completions }, call) => completions.list(call)),
    ...post(CHAT_FIELDS, chats),
  },
  '/v1/chat/completions/*/messages': getJobs(({ completions }, call) => completions.messages(call)),
  '/v1/chat/completions/*': {
    ...getJobs(({ completions }, call) => completions.get(call)),
    ...postJobs(METADATA_FIELDS, ({ completions }, call) => completions.update(call)),
    ...deleteJobs(({ completions }, call) => completions.remove(call)),
  },
  '/v1/models/*': { ...models, ...deleteJobs((jobs, call) => jobs.models.remove(call)) },
  '/v1/aliases': {
    ...get(listAliases),
    ...postJobs(ALIAS_FIELDS, (jobs, call) => jobs.models.setAlias(call), 'admin'),
  },
  '/v1/aliases/*': deleteJobs((jobs, call) => jobs.models.removeAlias(call), 'admin'),
  '/': pageFile,
  '/chat.js': pageFile,
  '/chat.css': pageFile,
  '/chat.svg': pageFile,
  '/health': probe(health),
  '/ready': probe(ready),
  '/version': probe(version),
  '/metrics': get(metrics),
  '/v1/models': models,
  '/v1/completions': post(COMPLETION_FIELDS, textsIn(COMPLETIONS)),
  '/v1/responses': post(RESPONSE_FIELDS, respond),
  '/v1/responses/input_tokens': post(INPUT_TOKENS_FIELDS, countInput),
  '/v1/responses/*': { ...get(keptResponse), DELETE: { right: 'key', answer: removeResponse } },
  '/v1/messages': post(MESSAGE_FIELDS, textsIn(MESSAGES)),
  '/v1/messages/count_tokens': post(COUNT_FIELDS, countTokens),
  '/tokenize': post(TOKENIZE_FIELDS, tokenize),
  '/detokenize': post(DETOKENIZE_FIELDS, detokenize),
  '/v1/rerank': post(RERANK_FIELDS, readingsBy(rerankingOf(1))),
  '/v2/rerank': post(RERANK_FIELDS, readingsBy(rerankingOf(2))),
  '/v1/score': post(SCORE_FIELDS, readingsBy(scoring)),
  '/v1/embeddings': post(EMBEDDING_FIELDS, readingsBy(embeddings)),
  '/v1/classify': labels,
  '/classify': labels,
  '/api/chat': post(OLLAMA_CHAT_FIELDS, ollamaChat),
  '/api/generate': post(OLLAMA_TEXT_FIELDS, ollamaText),
  '/api/embed': post(OLLAMA_EMBED_FIELDS, ollamaVectors(true)),
  '/api/embeddings': post(OLLAMA_EMBEDDINGS_FIELDS, ollamaVectors(false)),
  '/api/show': post(OLLAMA_NAME_FIELDS, show),
  '/api/pull': post(OLLAMA_NAME_FIELDS, pull),
  '/api/tags': get(tags),
  '/api/ps': get(loadedModels),
  '/api/version': get(ollamaVersion),
  '/v1/load_lora_adapter': post(LOAD_FIELDS, loadAdapter, 'admin'),
  '/v1/unload_lora_adapter': post(UNLOAD_FIELDS, unloadAdapter, 'admin'),
}
