// Cheap checks of a command's values before it works for minutes: a folder given for the wrong option, a place that
// cannot be written, a device that does not exist.

import { existsSync } from 'node:fs'
import { join } from 'node:path'
import { type Command, flagOf, UsageError } from './options.js'

const hasAny = (folder: string, ...files: string[]) => files.some((file) => existsSync(join(folder, file)))
const isAdapter = (folder: string) => hasAny(folder, 'adapter_config.json')
const isModel = (place: string) =>
  (/\.(onnx|gguf)$/i.test(place) && existsSync(place)) || hasAny(place, 'config.json', 'model.onnx', 'onnx')

export async function checkEarly(command: Command, values: Readonly<Record<string, unknown>>): Promise<void> {
  checkRoles(command, values)
  if (command.name === 'inspect' && /\.(jsonl|csv|tsv|parquet)$/i.test(String(values.source))) {
    throw new UsageError(`${values.source}: these are records: use lowrank data ${values.source}`)
  }
  const { requireDevices, requireWritable } = await import('../../api/node/command-line.js')
  for (const key of ['out', 'html']) {
    const target = values[key]
    if (typeof target === 'string' && Object.hasOwn(command.options, key)) await requireWritable(target, key)
  }
  const { device } = values
  if (device !== undefined) await requireDevices([device].flat() as string[])
}

function checkRoles({ name, options, subject = [] }: Command, values: Readonly<Record<string, unknown>>): void {
  const takesAdapters = Object.hasOwn(options, 'adapter')
  for (const key of ['model', 'base', 'merged', 'fineTuned']) {
    const place = values[key]
    if (typeof place !== 'string' || !isAdapter(place) || isModel(place)) continue
    const use = takesAdapters ? `use --adapter ${place}` : `'lowrank ${name}' takes a model here`
    throw new UsageError(`${flagOf(key)} ${place}: this is an adapter: ${use}`)
  }
  if (!takesAdapters || name === 'convert') return
  for (const given of [values.adapter ?? []].flat() as unknown[]) {
    const place = String(given).replace(/^[^=/\\]+=/, '')
    if (!isModel(place) || isAdapter(place)) continue
    const key = Object.hasOwn(options, 'model') ? 'model' : subject.find((positional) => positional === 'base')
    const use = key === undefined ? `'lowrank ${name}' takes an adapter here` : `use ${flagOf(key)} ${place}`
    throw new UsageError(`--adapter ${place}: this is a model: ${use}`)
  }
}
