// What the logits of an adapter's head mean. PEFT has no place for it. lowrank keeps it in the metadata of the weights' file, which PEFT
// leaves unread, so that labels and weights cannot be separated.

/** The member of the metadata: a list of texts, as JSON. */
const KEY = 'labels'

/** The labels in a file's metadata, or a note on what cannot be read there. */
export function readLabels(metadata: Readonly<Record<string, string>>): {
  readonly labels?: readonly string[]
  readonly notes: readonly string[]
} {
  if (!Object.hasOwn(metadata, KEY)) return { notes: [] }
  try {
    const labels: unknown = JSON.parse(metadata[KEY])
    if (Array.isArray(labels) && labels.every((label) => typeof label === 'string')) return { labels, notes: [] }
  } catch {
    // No JSON is as bad as JSON of something else.
  }
  return { notes: ['labels in the metadata of its weights that are no list of texts'] }
}

/** Metadata with these labels. */
export function labelsMetadata(labels: readonly string[] | undefined): Record<string, string> {
  return labels === undefined ? {} : { [KEY]: JSON.stringify(labels) }
}
