// The models of a server: the base, and adapters that requests load and remove.

import { jsonResponse } from '../bodies/pieces.js'
import { ANTHROPIC, anthropicModels } from '../forms/anthropic.js'
import { wireOf } from '../forms/wire.js'
import type { Call } from '../route.js'
import { notTraining, type Serving } from '../serving.js'

export async function listModels({ registry }: Serving, { request, id, caller }: Call): Promise<Response> {
  const listed = await registry.list(id, caller)
  return Response.json(wireOf(request) === ANTHROPIC ? anthropicModels(listed as never) : listed)
}

/** The operator's names, and those that requests have made. */
export async function listAliases({ upstreams, jobs }: Serving): Promise<Response> {
  const given = Object.entries(upstreams.names)
  if (jobs === undefined && given.length === 0) throw notTraining()
  const own = given.map(([name, model]) => ({ id: name, object: 'alias', name, model }))
  return jsonResponse({ object: 'list', data: [...own, ...((await jobs?.models.aliases()) ?? [])], has_more: false })
}

export async function loadAdapter({ registry }: Serving, { fields }: Call): Promise<Response> {
  await registry.load(fields.lora_name as string, fields.lora_path as string)
  return new Response(`Success: LoRA adapter '${fields.lora_name}' added successfully.`)
}

export async function unloadAdapter({ registry }: Serving, { fields }: Call): Promise<Response> {
  await registry.unload(fields.lora_name as string)
  return new Response(`Success: LoRA adapter '${fields.lora_name}' removed successfully.`)
}
