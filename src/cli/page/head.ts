// The top of an inspection's page: facts, problems, warnings and notes. Embedded as its own source text.

import type { View } from './view.js'

export function drawHead({ data, make }: View, head: HTMLElement): void {
  const list = make('dl')
  for (const [label, value] of data.facts) list.append(make('dt', '', label), make('dd', '', value))
  head.append(list)
  const groups: [className: string, label: string, messages: string[]][] = [
    ['problems', 'problem', data.problems],
    ['warnings', 'warning', data.warnings],
    ['notes', 'note', data.notes],
  ]
  for (const [className, label, messages] of groups) {
    if (messages.length === 0) continue
    const items = make('ul', `messages ${className}`)
    for (const message of messages) {
      const item = make('li')
      item.append(make('b', '', `${label}: `), message)
      items.append(item)
    }
    head.append(items)
  }
}
