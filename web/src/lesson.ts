// The lesson: questions with the answers that were recorded, and then with the answers of the adapter while it learns.

import { byId, make } from './dom.js'

type Shown = readonly (Node | string)[]

/** A question with the answer of the adapter, and that of the model alone, if it gives one. */
export interface LessonCard {
  readonly question: string
  readonly alone?: Shown | undefined
  readonly taught: Shown
  /** The text that the model wrote without the adapter, in place of labels, which only the adapter can give. */
  readonly writesOn?: string | undefined
}

const withoutLabels = (text: string) =>
  `The model alone: no label, it goes on “${text.trim().split(' ').slice(0, 9).join(' ')} …”`

/** Shows the cards in place of earlier ones. `when` says which state of the adapter answers. */
export function showLesson(title: string, cards: readonly LessonCard[], when = 'After the lesson'): void {
  byId('lesson-title').textContent = title
  const part = (title: string, shown: Shown | undefined) =>
    shown === undefined ? [] : [make('h4', {}, title), make('div', {}, ...shown)]
  const articles = cards.map(({ question, alone, taught, writesOn }) =>
    make(
      'article',
      { class: 'answer recorded' },
      make('h3', {}, `“${question}”`),
      // The adapter's answer comes first, since the bar may cover what is lower.
      ...part(when, taught),
      ...part('The model alone', alone),
      ...(writesOn === undefined ? [] : [make('p', { class: 'state' }, withoutLabels(writesOn))]),
    ),
  )
  byId('recorded').replaceChildren(...articles)
}
