// lowrank report: writes an HTML file that compares the curves of training runs.

import { readFile } from 'node:fs/promises'
import { join } from 'node:path'
import { FormatError } from '../../../api/index.js'
import { readTextFile } from '../../../api/node/command-line.js'
import type { RunEvaluation, RunFacts, RunStep } from '../../../api/report/run.js'
import { defineCommand, repeated, required, toggle } from '../options.js'
import { refusePage, writePage } from '../show/outputs.js'

export const report = defineCommand({
  name: 'report',
  summary: 'compare training runs on one page',
  about: [
    'Writes one HTML file with the losses, metrics, answers and settings of training runs. Each DIR is the folder of a run,',
    'which has its own report.html when it is done. With several runs, shows the settings that differ.',
  ].join('\n'),
  examples: [
    'lowrank report out/scripture --html out/run.html',
    'lowrank report out/scripture out/scripture-2 --html out/runs.html',
  ],
  subject: ['run'],
  options: {
    run: { ...repeated('DIR', 'folder of a training run'), isRequired: true },
    html: required('FILE', 'the page'),
    overwrite: toggle('replace the file of --html if it exists'),
  },
  async run({ run: folders, html, overwrite }) {
    await refusePage(html, overwrite, 'report')
    const runs = await Promise.all(folders.map(readRun))
    const { runReport } = await import('../../../api/report/run.js')
    await writePage(html, runReport(runs, folders.join(', ')), overwrite)
    return 0
  },
})

type Watched = RunEvaluation & { readonly samples?: RunFacts['samples'][number]['samples'] }

async function readRun(folder: string): Promise<RunFacts> {
  const inFolder = (file: string) => join(folder, file)
  const optional = (file: string) => readFile(inFolder(file), 'utf8').catch(() => '')
  const steps = lines<RunStep>(await readTextFile(inFolder('metrics.jsonl')), inFolder('metrics.jsonl'))
  const watched = lines<Watched>(await optional('evaluations.jsonl'), inFolder('evaluations.jsonl'))
  const record = (await optional('run.json')).replaceAll('\n', '')
  const [settings = {}] = lines<Record<string, unknown>>(record, inFolder('run.json'))
  return {
    name: folder,
    steps,
    evaluations: watched.filter(({ samples }) => samples === undefined),
    samples: watched.flatMap(({ step, samples }) => (samples === undefined ? [] : [{ step, samples }])),
    settings,
  }
}

function lines<T>(text: string, where: string): T[] {
  return text.split('\n').flatMap((line, i) => {
    if (line.trim() === '') return []
    try {
      return [JSON.parse(line) as T]
    } catch (cause) {
      throw new FormatError({ where: `${where}, line ${i + 1}`, what: 'not a line of a training run', cause })
    }
  })
}
