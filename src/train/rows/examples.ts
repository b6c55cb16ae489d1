// Rows of data → the examples of a task, with counts of what was cut or left out.

import { ConfigError, DataError } from '../../core/base/errors.js'
import { nextTurn } from '../../core/base/turns.js'
import type { OnInvalid, Rows } from '../../files/data/row.js'
import type { Model, TextModel } from '../../model/model-folder.js'
import { loadChatTemplate, recordTemplate } from '../../model/text/chat-template.js'
import { type ExampleFile, ExampleStore } from '../../model/text/example-store.js'
import type { ChatTemplate } from '../../model/text/template.js'
import type { TrainInput } from '../options.js'
import type { PictureEncoder } from '../tasks/pictures/encoder.js'
import type { EncodeContext, Encoded, Task } from '../tasks/task.js'
import { countOne, MAX_NOTES, unreadNotes } from './facts.js'
import { checkWriter } from './sources.js'

const YIELD_MS = 16

export interface EncodedRows {
  readonly examples: ExampleStore<unknown>
  rows: number
  truncatedRecords: number
  skippedRecords: number
  /** Parts of rows that are not learned, with the number of rows that have them: "have empty answers …". */
  readonly notes: Map<string, number>
}

export interface EncodedSource {
  readonly kept: EncodedRows
  readonly heldOut: EncodedRows
  readonly maxLength: number
  readonly chatTemplate: string | undefined
}

interface ReadingOptions
  extends Pick<
    TrainInput,
    | 'maxLength'
    | 'chatTemplate'
    | 'chatTemplateArgs'
    | 'toolForm'
    | 'toolsInAdapter'
    | 'decodeImage'
    | 'termsRead'
    | 'taskOptions'
  > {
  readonly pictures?: PictureEncoder | undefined
}

export interface EncodeOptions extends ReadingOptions {
  readonly task: Task
  readonly model: Model
  /** True if rows for evaluation are cut to the model's context, and not to `maxLength`. */
  readonly isHeldOutWhole?: boolean | undefined
  /** Takes the errors of rows that are left out. Default: the first one is thrown. */
  readonly onInvalid?: OnInvalid | undefined
  readonly isHeldOut?: ((index: number) => boolean) | undefined
  /** Hears of each row: as the task parsed it, as it was encoded, and as the data have it. */
  readonly onRow?: ((row: unknown, encoded: Encoded<unknown>, isHeldOut: boolean, record: unknown) => void) | undefined
  /** Opens the file for the examples that are not kept in memory. */
  readonly file?: (() => ExampleFile) | undefined
  readonly name: string
}

export async function encodeRows(rows: Rows, options: EncodeOptions): Promise<EncodedSource> {
  const { task, name, isHeldOut = () => false } = options
  const context = await encodeContext(options)
  const { maxLength } = context
  const whole = { ...context, maxLength: resolveMaxLength(undefined, options.model.contextLength), isLimited: false }
  const [kept, heldOut] = [0, 1].map((): EncodedRows => {
    const examples = new ExampleStore<unknown>(options.file)
    return { examples, rows: 0, truncatedRecords: 0, skippedRecords: 0, notes: new Map() }
  })
  let pausedAt = performance.now()
  for await (const { row, where } of rows) {
    const part = isHeldOut(kept.rows + heldOut.rows) ? heldOut : kept
    part.rows++
    const read = await encodeRow(task, row, where, part === heldOut && options.isHeldOutWhole ? whole : context).catch(
      (error: unknown) => {
        if (!(error instanceof DataError) || options.onInvalid === undefined) throw error
        options.onInvalid(error)
      },
    )
    if (read === undefined) continue
    const { parsed, encoded } = read
    if (encoded.isTruncated) part.truncatedRecords++
    if (encoded.examples.length === 0) part.skippedRecords++
    for (const note of [...(encoded.notes ?? []), ...unreadNotes(task, row)]) countOne(part.notes, note, MAX_NOTES)
    for (const example of encoded.examples) part.examples.push(example)
    options.onRow?.(parsed, encoded, part === heldOut, row)
    if (performance.now() - pausedAt > YIELD_MS) {
      await nextTurn()
      pausedAt = performance.now()
    }
  }
  requireExamples(kept, name, maxLength)
  if (options.isHeldOut !== undefined) {
    const hint = `there are ${kept.rows} records in all: raise \`evalSplit\`, or leave it out`
    requireExamples(heldOut, `${name}, the part for evaluation`, maxLength, hint)
  }
  const recorded = context.used && recordTemplate(context.used.text, options.chatTemplateArgs)
  const { tools } = context
  const chatTemplate =
    recorded && tools
      ? (await import('../../model/text/calls/known-tools.js')).withKnownTools(recorded, tools.functions)
      : recorded
  return { kept, heldOut, maxLength, chatTemplate }
}

export async function encodeRow(task: Task, row: unknown, where: string, context: EncodeContext) {
  checkWriter(row, where, context.termsRead)
  const parsed = task.parse(row, where)
  const encoded = task.encode(task.load === undefined ? parsed : await task.load(parsed, context), context)
  return { parsed, encoded }
}

/** Gives what reads the pictures of a model while `work` goes on; undefined for one that reads none beside texts. */
export async function withPictures<T>(
  { model, decodeImage, threads, device }: Pick<TrainInput, 'model' | 'decodeImage' | 'threads' | 'device'>,
  work: (pictures: PictureEncoder | undefined) => Promise<T>,
): Promise<T> {
  if (model.graphs.vision_encoder === undefined || model.graphs.embed_tokens === undefined) return work(undefined)
  const { PictureEncoder } = await import('../tasks/pictures/encoder.js')
  const executionProviders = device === undefined ? undefined : [device].flat()
  const pictures = new PictureEncoder({ model, decodeImage, threads, executionProviders })
  return work(pictures).finally(() => pictures.close())
}

/**
 * Reads the chat template once; errors in it are thrown when a row needs it. `used` is the template if a row has needed
 * it.
 */
export async function encodeContext(options: ReadingOptions & { readonly model: TextModel }) {
  const { model, chatTemplate, chatTemplateArgs, decodeImage, pictures, termsRead, taskOptions } = options
  const { toolForm, toolsInAdapter } = options
  const maxLength = resolveMaxLength(options.maxLength, model.contextLength)
  const loaded = await loadChatTemplate(model.directory, chatTemplate, { toolForm, toolsInAdapter }).then(
    (template) => ({ template: template && (pictures?.template(template, chatTemplateArgs) ?? template) }),
    (error: unknown) => ({ error }),
  )
  const tools = toolsInAdapter ? new (await import('../../model/text/calls/take-tools.js')).TakenTools() : undefined
  const context = {
    model,
    maxLength,
    isLimited: options.maxLength !== undefined,
    chatTemplateArgs,
    decodeImage,
    pictures,
    termsRead,
    taskOptions,
    tools,
    used: undefined as ChatTemplate | undefined,
    chatTemplate(): ChatTemplate | undefined {
      if ('error' in loaded) throw loaded.error
      context.used = loaded.template
      return loaded.template
    },
  }
  return context satisfies EncodeContext
}

function requireExamples(found: EncodedRows, where: string, maxLength: number, hintIfNone?: string): void {
  const { examples, rows, truncatedRecords, notes } = found
  if (examples.length > 0) return
  const told = notes.size > 0 ? `Its records ${[...notes.keys()].join('; ')}` : hintIfNone
  const hint = truncatedRecords > 0 ? `maxLength ${maxLength} cuts off every completion: raise it` : told
  if (rows === 0) throw new DataError({ where, what: 'it holds no records', hint: hintIfNone })
  throw new DataError({ where, what: 'no record has a token to learn from', hint })
}

function resolveMaxLength(maxLength: number | undefined, contextLength: number | undefined): number {
  if (maxLength === undefined) return contextLength ?? Number.POSITIVE_INFINITY
  if (contextLength !== undefined && maxLength > contextLength) {
    throw new ConfigError({
      where: 'maxLength',
      what: "above the model's context",
      expected: `at most ${contextLength}`,
      got: String(maxLength),
    })
  }
  return maxLength
}
