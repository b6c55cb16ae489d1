// Text of `lowrank` without a command: what to do next, as the files in the working directory suggest.

import { readdirSync } from 'node:fs'
import { join } from 'node:path'
import { createColors } from 'picocolors'

/** A model that is small and answers chats. */
export const SMALL_MODEL = 'HuggingFaceTB/SmolLM2-135M-Instruct'

/** Files that can be trained on without saying more. */
const DATA = /\.(jsonl|csv|tsv|parquet)$/

/** Files in the working directory that a next step could use. */
interface Found {
  readonly data: string | undefined
  readonly adapter: string | undefined
}

/** The lines, for the folder that the program runs in. */
export async function welcome(version: string, useColor: boolean, folder = '.'): Promise<string> {
  const { bold, cyan, dim } = createColors(useColor)
  const { data, adapter } = look(folder)
  const step = (command: string, about: string) => [`  ${cyan(command)}`, `      ${dim(about)}`]
  const records = '{"messages": [{"role": "user", "content": "…"}, {"role": "assistant", "content": "…"}]}'
  return [
    `${bold(`lowrank ${version}`)}: LoRA adapters for ONNX models, without Python`,
    '',
    ...((await hasRuntime())
      ? []
      : [bold('First'), ...step('npm install onnxruntime-node', 'what runs the models'), '']),
    bold('See it work'),
    ...step('npx lowrank demo', `teaches ${SMALL_MODEL} a few answers and asks it again; some minutes`),
    '',
    bold(adapter === undefined ? 'With your own data' : 'Go on'),
    ...(adapter === undefined
      ? step(
          `npx lowrank train --model ${SMALL_MODEL} --data ${data ?? 'chats.jsonl'} --out my-adapter`,
          data === undefined ? `chats.jsonl has one chat a line: ${records}` : `${data} is in this folder`,
        )
      : []),
    ...step(
      `npx lowrank generate --adapter ${adapter ?? 'my-adapter'} --prompt "Who are you?"`,
      adapter === undefined ? 'asks the adapter' : `${adapter} was trained in this folder`,
    ),
    ...step(
      `npx lowrank merge --base ${SMALL_MODEL} --adapter ${adapter ?? 'my-adapter'} --out my-model`,
      'a model with the adapter inside, for transformers.js and any ONNX Runtime',
    ),
    '',
    `All commands: ${cyan('npx lowrank --help')}. One of them: ${cyan('npx lowrank train --help')}.`,
  ].join('\n')
}

function look(folder: string): Found {
  let entries: { name: string; isDirectory(): boolean }[] = []
  try {
    entries = readdirSync(folder, { withFileTypes: true })
  } catch {
    // Files that cannot be read give no advice.
  }
  const plain = (name: string) => /^[\w@%+=:,./-]+$/.test(name)
  const data = entries.find((entry) => !entry.isDirectory() && DATA.test(entry.name) && plain(entry.name))?.name
  const adapter = entries.find((entry) => {
    if (!entry.isDirectory() || entry.name.startsWith('.') || !plain(entry.name)) return false
    try {
      return readdirSync(join(folder, entry.name)).includes('adapter_config.json')
    } catch {
      return false
    }
  })?.name
  return { data, adapter }
}

async function hasRuntime(): Promise<boolean> {
  const { nodeRuntime } = await import('../../node.js')
  try {
    nodeRuntime()
    return true
  } catch {
    return false
  }
}
