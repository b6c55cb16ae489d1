// The script of a report: draws each section of the data that the file carries.

import 'uplot/dist/uPlot.min.css'
import './style.css'
import type { Report, Sample, Section } from '../../src/report/page.js'
import { chart } from './curves.js'
import { make, section } from './dom.js'
import { table } from './table.js'

function draw(part: Section): HTMLElement[] {
  switch (part.kind) {
    case 'facts': {
      const list = make('dl')
      for (const [label, value] of part.facts) list.append(make('dt', '', label), make('dd', '', value))
      return [part.title === undefined ? list : section(part.title, list)]
    }
    case 'curves':
      return [section(part.title, chart(part.series, part))]
    case 'table':
      return [section(part.title, table(part.columns, part.rows))]
    case 'samples':
      return [section(part.title, ...part.samples.map(sample))]
  }
}

function sample({ prompt, answers }: Sample): HTMLElement {
  const row = make('div', 'sample')
  const columns = make('div', 'answers')
  for (const { label, text } of answers) {
    const answer = make('div', 'answer')
    answer.append(make('h3', '', label), make('p', '', text))
    columns.append(answer)
  }
  row.append(make('p', 'prompt', prompt), columns)
  return row
}

const { title, sections } = JSON.parse(document.getElementById('data')!.textContent!) as Report
const main = document.getElementById('main')!
main.append(make('h1', '', title), ...sections.flatMap(draw))
