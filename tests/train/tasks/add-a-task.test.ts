// Adding a task takes one file and one line in a table. A toy task that is added in this way trains, and it appears on
// the command line, in the model card and on the page.

import { cpSync, mkdirSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import * as ort from 'onnxruntime-node'
import { afterAll, beforeAll, describe, expect, it } from 'vitest'
import type { Model, TaskFacts } from '../../../src/api/index.js'
import type { Command } from '../../../src/app/cli/options.js'
import { root } from '../../structure/project.js'

const TOY = `
import { causalLm } from './causal-lm.js'

const page = { lesson: 'The adapter will learn to play.', unit: 'tokens', settings: { maxSteps: 9, learningRate: 0.1, batchSize: 1 } }

export const toy = {
  ...causalLm,
  name: 'toy',
  learns: 'to echo a toy',
  records: [{ toy: 'The sea', size: 3 }],
  learningRate: 2e-3,
  use: { command: ['generate', '--prompt', 'Toy'], pipeline: 'text-generation', autoClass: 'AutoModelForToys' },
  page,
  parse: (row, where) => causalLm.parse({ text: row.toy }, where),
}
`
const LINE = "  toy: async () => (await import('./toy.js')).toy as never,\n"

/** The part of the page that chooses a task. The page is compiled separately, with Vite's types. */
interface Page {
  taskOf(open: object, data: { text: string; pictures: readonly never[] }): TaskFacts
}

let folder: string
let lowrank: typeof import('../../../src/api/node.js')
let model: Model
beforeAll(async () => {
  mkdirSync(join(root, 'out'), { recursive: true })
  folder = mkdtempSync(join(root, 'out', 'toy-'))
  for (const part of ['src', 'web/src']) cpSync(join(root, part), join(folder, part), { recursive: true })
  // The page imports the package by name, so its name must lead to the toy task.
  const manifest = JSON.parse(readFileSync(join(root, 'package.json'), 'utf8'))
  writeFileSync(join(folder, 'package.json'), JSON.stringify({ ...manifest, exports: './src/api/node.ts' }))
  writeFileSync(join(folder, 'src/train/tasks/toy.ts'), TOY)
  const table = join(folder, 'src/train/tasks/tasks.ts')
  const before = readFileSync(table, 'utf8')
  writeFileSync(table, before.replace(/(const LOADERS = \{\n)/, `$1${LINE}`))
  expect(readFileSync(table, 'utf8')).not.toBe(before)
  lowrank = await import(join(folder, 'src/api/node.ts'))
  const runtime = { module: ort }
  model = await lowrank.loadModel(join(root, 'tests/golden/models/llama-optimum'), { runtime })
})
afterAll(async () => {
  await model?.close()
  rmSync(folder, { recursive: true, force: true })
})

describe('a task that is one file and one line', () => {
  it('is trained at its own rate, and has its model card', async () => {
    const out = join(folder, 'adapter')
    const options = { model, data: [{ toy: 'The sea was calm.' }], task: 'toy' as never, maxSteps: 1, threads: 1, out }
    const { report } = await lowrank.train({ ...options, config: { rank: 2, targetModules: ['q_proj'] } })
    expect(report.steps).toBe(1)
    const card = readFileSync(join(out, 'README.md'), 'utf8')
    expect(card).toContain('AutoModelForToys')
    expect(card).toContain('generate --model')
    expect(card).toContain('--prompt "Toy"')
    expect(card).toContain('learning rate: 0.002')
    expect(card).toContain('task: toy')
  })

  it('is refused where a record has other fields, and named where a task is misspelled', async () => {
    const data = [{ toy: 'The sea' }]
    await expect(lowrank.train({ model, data, task: 'toi' as never })).rejects.toThrow(/toy/)
    await expect(lowrank.train({ model, data: [{ text: 3 } as never], task: 'toy' as never })).rejects.toThrow(
      /data\[0\]/,
    )
  })

  it('stands in the help of the command line', async () => {
    const { train }: { train: Command } = await import(join(folder, 'src/app/cli/run/train.ts'))
    const { commandHelp } = await import(join(folder, 'src/app/cli/show/help.ts'))
    const help: string = await commandHelp(train, false)
    expect(help).toMatch(/ toy {2}to echo a toy \(learning rate 2e-3\)\n +\{"toy":"The sea","size":3\}/)
  })

  it('is chosen by the page for records with its fields', async () => {
    const { taskOf }: Page = await import(join(folder, 'web/src/data.ts'))
    const tasks = (await lowrank.trainingTasks(model)).filter(({ page }) => page !== undefined)
    const open = { name: 'llama', reads: 'text', tasks }
    const chosen = (text: string) => taskOf(open, { text, pictures: [] })
    expect(chosen('{"toy": "The sea", "size": 3}').page?.lesson).toBe('The adapter will learn to play.')
    expect(chosen('toy,size\nThe sea,3').name).toBe('toy')
    expect(chosen('{"text": "The sea"}').name).toBe('causal-lm')
    expect(chosen('{"text": "The sea", "label": "a"}').name).toBe('text-classification')
    expect(chosen('text\tlabel\nThe sea\ta').name).toBe('text-classification')
    expect(chosen('The sea, which was calm.').name).toBe('causal-lm')
    expect(() => chosen('{"sea": 1}')).toThrow(/llama cannot learn from this.*toy and size/)
  })
})

it('each task can read its own sample records', async () => {
  const { TASK_NAMES, loadTask } = await import('../../../src/train/tasks/tasks.js')
  for (const name of TASK_NAMES) {
    const task = await loadTask(name)
    expect(task.name).toBe(name)
    expect(task.records.length).toBeGreaterThan(0)
    for (const record of task.records) task.parse(record, `${name}, record`)
  }
})
