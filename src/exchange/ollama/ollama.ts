// A folder for `ollama create`: the adapter as GGUF, and a Modelfile with the base, the template and its stops.

import { type Place, readJson, writeFile } from '../../base/bytes.js'
import { ConfigError, UnsupportedError } from '../../base/errors.js'
import { isObject } from '../../base/options.js'
import { requireAlwaysOn } from '../../lora/requirements.js'
import { loadChatTemplate } from '../../text/chat-template.js'
import type { ChatTemplate } from '../../text/template.js'
import type { ExchangeFormat } from '../format.js'
import { GGUF } from '../gguf/format.js'
import { goTemplate, type TurnShape, turnShape } from './turns.js'

const ADAPTER_FILE = 'adapter.gguf'

export const OLLAMA: ExchangeFormat = {
  // A folder with one GGUF file is read as that file.
  detect: async () => false,
  open: GGUF.open,
  async write(adapter, { directory }, settings) {
    const { base } = settings
    if (base === undefined) {
      const expected = 'the folder of the model, with its chat template, or its GGUF file beside these'
      throw new ConfigError({ where: 'base', what: 'missing: the Modelfile names the model', expected })
    }
    requireAlwaysOn(adapter, 'Ollama')
    const template = await loadChatTemplate(base.directory, adapter.chatTemplate)
    const shape = template && turnShape(template, await beginning(base))
    const written = await GGUF.write(adapter, { directory, file: ADAPTER_FILE }, settings)
    await writeFile(directory, 'Modelfile', modelfile(base, shape))
    return { ...written, notes: [...(written.notes ?? []), ...notesOf(base, template, shape)] }
  },
}

async function beginning({ directory }: Place): Promise<string> {
  if (!(await directory.has('tokenizer_config.json'))) return ''
  const config = await readJson(directory, 'tokenizer_config.json')
  const token = isObject(config) ? config.bos_token : undefined
  const text = isObject(token) ? token.content : token
  return typeof text === 'string' ? text : ''
}

function modelfile({ directory, file }: Place, shape: TurnShape | undefined): string {
  const { name, hubId } = directory
  const place = file === undefined ? name : `${name}/${file}`
  if (/\s/.test(place)) {
    throw new UnsupportedError({ where: place, what: 'a Modelfile takes no path with spaces', hint: 'Move the model' })
  }
  const from = hubId === undefined ? (/^([./\\]|\w:)/.test(place) ? place : `./${place}`) : `hf.co/${hubId}`
  const stop = shape?.assistant[1].trim()
  return [
    `FROM ${from}`,
    `ADAPTER ./${ADAPTER_FILE}`,
    ...(shape === undefined ? [] : [`TEMPLATE """${goTemplate(shape)}"""`]),
    ...(stop === undefined || stop === '' ? [] : [`PARAMETER stop ${JSON.stringify(stop)}`]),
    '',
  ].join('\n')
}

function notesOf(base: Place, template: ChatTemplate | undefined, shape: TurnShape | undefined): string[] {
  return [
    'ollama create NAME -f Modelfile, in this folder. FROM is read from there: an absolute path is safest',
    ...(base.file === undefined && base.directory.hubId !== undefined
      ? ['FROM takes a repository with GGUF files: name one if this repository has none']
      : []),
    ...(template === undefined ? ['the model has no chat template, so that Ollama continues texts as they are'] : []),
    ...(template?.text.includes('tools') ? ['tools are left out: the template for Ollama writes messages alone'] : []),
    ...(template?.text.includes('trim') ? ['the template trims messages, which Go’s language cannot'] : []),
    ...(template?.text.includes('strftime_now') ? ['the date in the template is that of today'] : []),
    ...(shape !== undefined && shape.system === undefined
      ? ['system messages are left out, as the template has no place for them']
      : []),
  ]
}
