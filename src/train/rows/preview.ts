// The first examples of some data as training would see them: which tokens there are, and which of them count.

import { UnsupportedError } from '../../base/errors.js'
import { readRows } from '../../data/read-rows.js'
import { requireTokenizer } from '../../graph/model-folder.js'
import { defaultTask } from '../../tasks/default-task.js'
import { loadTask } from '../../tasks/tasks.js'
import type { TrainingOptions } from '../options.js'
import { encodeContext } from './examples.js'

/** A token of an example. */
export interface PreviewToken {
  readonly id: number
  /** The token as text. If a character consists of several tokens, the last of them has the text. */
  readonly text: string
  /** True for a target: the loss counts how well it is predicted. */
  readonly counts: boolean
}

/** An example. */
export interface PreviewExample {
  /** The record that it comes from: `chats.jsonl, line 3`. */
  readonly where: string
  readonly tokens: readonly PreviewToken[]
  /** The label of the whole text, for tasks with labels: several are joined by commas. */
  readonly label?: string
}

/** The part of the options that decides what training sees. */
export type PreviewOptions = Pick<
  TrainingOptions,
  'model' | 'task' | 'data' | 'columns' | 'maxLength' | 'chatTemplate' | 'chatTemplateArgs'
>

/**
 * The first `count` examples.
 *
 * @throws what training throws for the data, and UnsupportedError when the task's examples are no tokens
 */
export async function previewExamples(options: PreviewOptions, count: number): Promise<PreviewExample[]> {
  const { model, data, columns } = options
  const task = await loadTask(options.task ?? defaultTask(options.model))
  if (task.tokens === undefined) throw new UnsupportedError({ where: task.name, what: 'this task has no preview' })
  const context = await encodeContext(options)
  const tokenizer = requireTokenizer(model)
  const found: PreviewExample[] = []
  for await (const { row, where } of readRows(data, { columns })) {
    for (const example of task.encode(task.parse(row, where), context).examples) {
      const { ids, counts, label } = task.tokens(example)
      const texts = textsOf(ids, (some) => tokenizer.decode(some, { specialTokens: true }))
      const tokens = Array.from(ids, (id, i) => ({ id, text: texts[i], counts: counts(i) }))
      found.push({ where, tokens, ...(label === undefined ? {} : { label }) })
      if (found.length === count) return found
    }
  }
  return found
}

/** Text of each token. Bytes of an unfinished character wait for the token that completes it. */
function textsOf(ids: Int32Array, decode: (ids: readonly number[]) => string): string[] {
  let open: number[] = []
  return Array.from(ids, (id) => {
    open.push(id)
    const text = decode(open)
    if (text.endsWith('\ufffd') && open.length < MAX_CHARACTER_TOKENS) return ''
    open = []
    return text
  })
}

/** A character has at most four bytes, and a token at least one. */
const MAX_CHARACTER_TOKENS = 4
