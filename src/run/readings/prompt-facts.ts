// What servers ask about prompts and running texts without writing any.

import { checkArgument, checkOptions } from '../../core/base/options.js'
import type { ToolForm } from '../../model/text/calls/call.js'
import { mixesOf } from '../adapters/choice.js'
import { ENCODE_OPTIONS } from '../gen/options.js'
import type { TextSession } from '../generate/generate.js'
import { templateOf } from '../generate/messages.js'
import { encodePrompt, PROMPT } from '../generate/prompts.js'
import { textFormOf } from '../generate/text-graph.js'
import type { AdapterSession, EncodeOptions, Prompt } from '../session.js'

export async function encode(
  session: TextSession,
  prompt: Prompt,
  options: EncodeOptions = {},
): Promise<readonly number[]> {
  checkArgument(prompt, PROMPT, 'prompt')
  checkOptions(options, 'encode', ENCODE_OPTIONS)
  const context = { recorded: recordedTemplate(session, options), pictures: undefined, where: 'prompt' }
  return (await encodePrompt(session.model, prompt, options, context)).ids
}

export async function toolForm(session: TextSession, options: EncodeOptions = {}): Promise<ToolForm> {
  checkOptions(options, 'toolForm', ENCODE_OPTIONS)
  return (await template(session, options))?.calls.name ?? 'hermes'
}

export async function knownTools(session: TextSession, options: EncodeOptions = {}) {
  checkOptions(options, 'knownTools', ENCODE_OPTIONS)
  return (await template(session, options))?.knownTools
}

function template(session: TextSession, options: EncodeOptions) {
  const { chatTemplate = recordedTemplate(session, options), toolForm } = options
  return templateOf(session.model, chatTemplate, toolForm)
}

function recordedTemplate(session: TextSession, { adapter }: EncodeOptions): string | undefined {
  const mixes = mixesOf(adapter, undefined)
  session.checkMixes(mixes)
  return session.chatTemplateOf(mixes[0])
}

export async function cacheUse({ model, engine, bounds }: TextSession): ReturnType<AdapterSession['cacheUse']> {
  const tokens = await engine.runningTokens()
  const bytes = await model.onnx.once(cacheUse, () =>
    textFormOf(model).then(
      (form) => form.tokenBytes,
      () => 0,
    ),
  )
  return { tokens, mostTokens: bytes === 0 ? 0 : Math.floor(bounds.cacheBytes / bytes) }
}
