// The meaning of the logits of an adapter's head. PEFT has no place for it. lowrank keeps it in the metadata of the
// weights' file, which PEFT leaves unread, so that labels and weights cannot be separated.

import type { LoraAdapter } from '../lora/adapter.js'
import { PROBLEM_TYPES, type ProblemType } from '../lora/part.js'

export type Meaning = Pick<LoraAdapter, 'labels' | 'problemType'>

const LABELS = 'labels'
const PROBLEM_TYPE = 'problem_type'

export function readMeaning(metadata: Readonly<Record<string, string>>): Meaning & { notes: readonly string[] } {
  const member = (name: string) => (Object.hasOwn(metadata, name) ? metadata[name] : undefined)
  const labels = listOf(member(LABELS))
  const type = member(PROBLEM_TYPE)
  const problemType = PROBLEM_TYPES.find((known): known is ProblemType => known === type)
  const notes = [
    ...(labels === undefined && member(LABELS) !== undefined
      ? ['labels in the metadata of its weights that are no list of texts']
      : []),
    ...(problemType === undefined && type !== undefined
      ? [`a problem_type in the metadata of its weights that is not known: ${type}`]
      : []),
  ]
  return { labels, problemType, notes }
}

function listOf(text: string | undefined): readonly string[] | undefined {
  if (text === undefined) return undefined
  try {
    const labels: unknown = JSON.parse(text)
    return Array.isArray(labels) && labels.every((label) => typeof label === 'string') ? labels : undefined
  } catch {
    return undefined
  }
}

export function meaningMetadata({ labels, problemType }: Meaning): Record<string, string> {
  return {
    ...(labels !== undefined && { [LABELS]: JSON.stringify(labels) }),
    ...(problemType !== undefined && { [PROBLEM_TYPE]: problemType }),
  }
}
