// Takes the schemas of the answers that `lowrank openai` reads out of the OpenAPI files of the providers.
//
//   git clone https://github.com/openai/openai-openapi && git -C openai-openapi checkout f85dbe223d40e1a31cba812ab2d755c7e98a92a3
//   git clone https://github.com/togethercomputer/openapi && git -C openapi checkout 090263aa0fde006d9cd958bef52719958079bbc4
//   node scripts/golden/provider_answers.mjs openai-openapi/openapi.json openapi/openapi.yaml

import { readFileSync, writeFileSync } from 'node:fs'
import { parse } from 'yaml'

const ROUTES = {
  openai: [
    'GET /fine_tuning/jobs',
    'GET /fine_tuning/jobs/{fine_tuning_job_id}/events',
    'GET /fine_tuning/jobs/{fine_tuning_job_id}/checkpoints',
    'GET /files',
    'POST /files',
    'GET /batches',
    'POST /batches',
    'GET /chat/completions',
    'POST /chat/completions',
    'GET /chat/completions/{completion_id}/messages',
    'GET /models',
    'GET /evals',
    'GET /evals/{eval_id}/runs',
    'GET /evals/{eval_id}/runs/{run_id}/output_items',
  ],
  together: [
    'GET /fine-tunes',
    'GET /fine-tunes/{id}/events',
    'GET /fine-tunes/{id}/checkpoints',
    'GET /files',
    'GET /batches',
    'GET /models',
  ],
}
const LEFT_OUT = ['description', 'example', 'examples', 'title', 'default', 'deprecated', 'discriminator', 'nullable']

/** Without texts, and without what older versions of OpenAPI have beside JSON Schema. */
function plain(value, isNames = false) {
  if (Array.isArray(value)) return value.map((item) => plain(item))
  if (value === null || typeof value !== 'object') return value
  const isKept = (name) => isNames || !(name.startsWith('x-') || LEFT_OUT.includes(name))
  const kept = Object.entries(value).filter(
    ([name, member]) => isKept(name) && !(name === 'exclusiveMinimum' && member === true),
  )
  const made = Object.fromEntries(
    kept.map(([name, member]) => [name, plain(member, !isNames && name === 'properties')]),
  )
  return value.nullable === true && !isNames ? { anyOf: [made, { type: 'null' }] } : made
}

function* refsOf(value) {
  if (value === null || typeof value !== 'object') return
  if (typeof value.$ref === 'string') yield value.$ref.split('/').at(-1)
  for (const member of Object.values(value)) yield* refsOf(member)
}

for (const [i, [provider, routes]] of Object.entries(ROUTES).entries()) {
  const { paths, components } = parse(readFileSync(process.argv[2 + i], 'utf8'))
  const schemas = {}
  const take = (value) => {
    for (const name of refsOf(value)) {
      if (schemas[name] !== undefined) continue
      schemas[name] = plain(components.schemas[name])
      take(components.schemas[name])
    }
  }
  const answers = routes.map((route) => {
    const [method, path] = route.split(' ')
    const { schema } = paths[path][method.toLowerCase()].responses['200'].content['application/json']
    take(schema)
    return [route.replaceAll(/\{\w+\}/g, '*'), plain(schema)]
  })
  const sorted = Object.fromEntries(Object.entries(schemas).sort(([a], [b]) => (a < b ? -1 : 1)))
  const file = { answers: Object.fromEntries(answers), components: { schemas: sorted } }
  writeFileSync(`tests/golden/providers/${provider}.json`, `${JSON.stringify(file)}\n`)
}
