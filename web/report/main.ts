// The script of a report: draws each section of the data that the file carries.

import 'uplot/dist/uPlot.min.css'
import './style.css'
import type { Report, Sample, Section } from '../../src/api/report/page.js'
import { make } from '../src/elements.js'
import { chart } from './curves.js'
import { section } from './dom.js'
import { table } from './table.js'

function draw(part: Section): HTMLElement[] {
  switch (part.kind) {
    case 'facts': {
      const facts = part.facts.flatMap(([label, value]) => [make('dt', {}, label), make('dd', {}, value)])
      const list = make('dl', {}, ...facts)
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
  const columns = answers.map(({ label, text }) =>
    make('div', { class: 'answer' }, make('h3', {}, label), make('p', {}, text)),
  )
  const shown = make('div', { class: 'answers' }, ...columns)
  return make('div', { class: 'sample' }, make('p', { class: 'prompt' }, prompt), shown)
}

const { title, sections } = JSON.parse(document.getElementById('data')!.textContent!) as Report
const main = document.getElementById('main')!
main.append(make('h1', {}, title), ...sections.flatMap(draw))
