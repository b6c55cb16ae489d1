// The inputs that a session's graph gets for adapters added later, for each kind of part that the caller allows.

import { UnsupportedError } from '../../core/base/errors.js'
import { findHead, HEAD_KINDS } from '../../model/heads/head-forms.js'
import { type HeadBase, headInput, trainedLayers } from '../../model/heads/heads.js'
import type { SiteNeeds, SiteRole } from '../../model/inject/sites.js'
import { findEmbeddings } from '../../model/match/forms/lookup.js'
import type { Value } from '../../onnx/view/builder.js'
import type { NamedParts } from './parts.js'

/** A kind of part that the option `allow` of a session can name. */
export type AllowedKind = 'lora' | 'dora' | 'biases' | 'embeddings' | 'heads'

export interface AllowedInputs {
  readonly modules: SiteNeeds
  readonly given: ReadonlySet<Value>
}

/** The inputs that each kind of part needs at inner linear layers and at the output layer. */
const LINEAR: Readonly<Record<AllowedKind, { inner: readonly SiteRole[]; head: readonly SiteRole[] }>> = {
  lora: { inner: ['A', 'B'], head: [] },
  dora: { inner: ['scale', 'shift'], head: [] },
  biases: { inner: ['shift'], head: [] },
  embeddings: { inner: [], head: ['A', 'B', 'scale', 'shift', 'weight', 'columns'] },
  heads: { inner: [], head: [] },
}

export function allowedInputs(kinds: readonly AllowedKind[], base: HeadBase): AllowedInputs {
  const { graph, linears } = base
  const modules = new Map<string, ReadonlySet<SiteRole>>()
  for (const { name, isHead } of linears) {
    const roles = kinds.flatMap((kind) => LINEAR[kind][isHead ? 'head' : 'inner'])
    if (roles.length > 0) modules.set(name, new Set(roles))
  }
  if (kinds.includes('embeddings')) {
    for (const { name } of findEmbeddings(graph)) modules.set(name, new Set(['A', 'B', 'rows', 'rowOf']))
  }
  const given = new Set<Value>()
  for (const kind of kinds.includes('heads') ? HEAD_KINDS : []) {
    const form = findHead(kind, base)
    const input = form && headInput(form, graph, trainedLayers(form, base))
    if (input !== undefined && !graph.outputs.some((output) => output.name === input.value)) given.add(input.value)
  }
  return { modules, given }
}

export function requireAllowed({ name, factors, about }: NamedParts, needs: SiteNeeds, has: AllowedInputs): void {
  const missing = new Set<AllowedKind | 'replaced weights'>()
  for (const [module, roles] of needs) {
    const isLookup = factors.get(module)?.kind === 'lookup'
    for (const role of roles) {
      if (has.modules.get(module)?.has(role)) continue
      if (isLookup || role === 'columns') missing.add('embeddings')
      else if (role === 'weight' || role === 'values') missing.add('replaced weights')
      else missing.add(role === 'scale' ? 'dora' : role === 'shift' ? 'biases' : 'lora')
    }
  }
  const value = about.head?.input.value
  if (value !== undefined && !has.given.has(value)) missing.add('heads')
  if (missing.size === 0) return
  throw new UnsupportedError({
    where: `adapter ${JSON.stringify(name)}`,
    what: `the graph was opened without inputs for parts of this adapter: ${[...missing].join(', ')}`,
    hint: 'Name these kinds in `allow` (--allow of lowrank serve), or give the adapter when the session is opened',
  })
}
