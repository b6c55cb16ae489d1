// Recipes: data, a model and settings that fit, and what they gave when scripts/record-page.mjs ran them.

import { byId, make } from './dom.js'
import type { ModelChoice } from './models.js'
import recipes from './recipes.json'
import recordings from './recorded.json'
import { scoreLine } from './write.js'

export type Recipe = Omit<(typeof recipes)[number], 'model' | 'settings'> & {
  readonly model: ModelChoice
  readonly settings: Readonly<Record<string, number>>
}

interface Recording {
  readonly seconds: number
  readonly losses: readonly number[]
  readonly answers: readonly {
    readonly prompt: string
    readonly labels?: readonly { readonly label: string; readonly score: number }[]
    readonly alone?: string
    readonly taught?: string
  }[]
}

const CHOICES: Readonly<Record<string, ModelChoice>> = {
  bundled: { kind: 'bundled' },
  pictures: { kind: 'bundled', name: 'pictures' },
  chat: { kind: 'hub', id: 'HuggingFaceTB/SmolLM2-135M-Instruct', dtype: 'q4' },
}

export function setUpRecipes(chosen: (recipe: Recipe) => void): (id: string) => void {
  const all = recipes.map((recipe): Recipe => ({ ...recipe, model: CHOICES[recipe.model] }) as unknown as Recipe)
  const choose = (recipe: Recipe) => {
    for (const card of byId('recipes').children) {
      card.setAttribute('aria-pressed', String((card as HTMLElement).dataset.recipe === recipe.id))
    }
    showRecording(recipe.title, (recordings as Readonly<Record<string, Recording>>)[recipe.id])
    chosen(recipe)
  }
  const cards = all.map((recipe) => {
    const card = make(
      'button',
      { type: 'button', class: 'choice', 'data-recipe': recipe.id, 'aria-pressed': 'false' },
      make('strong', {}, recipe.title),
      make('span', {}, recipe.lead),
    )
    card.addEventListener('click', () => choose(recipe))
    return card
  })
  byId('recipes').replaceChildren(...cards)
  return (id) => choose(all.find((recipe) => recipe.id === id) ?? all[0])
}

function showRecording(title: string, recording: Recording | undefined): void {
  const cards = (recording?.answers ?? []).map(({ prompt, labels, alone, taught }) => {
    const shown =
      labels !== undefined
        ? [make('ol', { class: 'scores' }, ...labels.map(scoreLine))]
        : [
            make('h4', {}, 'The model alone'),
            make('p', {}, alone ?? ''),
            make('h4', {}, 'After the lesson'),
            make('p', {}, taught ?? ''),
          ]
    return make('article', { class: 'answer recorded' }, make('h3', {}, `“${prompt}”`), ...shown)
  })
  byId('recorded').replaceChildren(...cards)
  byId('recorded-note').textContent =
    recording === undefined
      ? `There is no recording of “${title}”: press “Teach it” to see it.`
      : `Recorded: ${recording.losses.length} steps in ${recording.seconds} s on two processors. These inputs were not in the data${
          recording.answers[0].labels === undefined ? '' : ', and the model alone knows none of these labels'
        }. Press “Teach it” to do the same here.`
}
