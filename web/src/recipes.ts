// Recipes: data with a fitting model and settings, and the results that scripts/record-page.mjs recorded.

import { ranking, scores, withNames } from './answers.js'
import { button, byId, make } from './dom.js'
import { type LessonCard, showLesson } from './lesson.js'
import { MODELS, type ModelChoice, missing } from './models.js'
import recipes from './recipes.json'
import recordings from './recorded.json'
import type { Job } from './runs.js'

export type Recipe = Omit<(typeof recipes)[number], 'model' | 'settings' | 'task'> & {
  readonly model: ModelChoice
  readonly task: Job['task']
  readonly settings: Readonly<Record<string, number>>
  readonly recording: Recording
}

interface Recording {
  readonly seconds: number
  readonly losses: readonly number[]
  /** The folder of the adapter, if it comes with the page: the visitor's own sentence can be labelled with it. */
  readonly adapter?: string
  readonly answers: readonly ({ readonly prompt: string } & Partial<Shown>)[]
}

/** Recorded answers: of the model alone, if it gives any, and of the adapter. */
interface Shown {
  readonly writesOn: string
  readonly labels: Parameters<typeof scores>[0]
  readonly names: Parameters<typeof withNames>[1]
  readonly found: readonly [alone: Parameters<typeof ranking>[0], taught: Parameters<typeof ranking>[0]]
  readonly texts: readonly [alone: string, taught: string]
}

const recorded = recordings as unknown as Readonly<Record<string, Recording>>
const all = recipes.map((recipe) => {
  const model = MODELS.find(({ name }) => name === recipe.model)!.choice
  return { ...recipe, model, recording: recorded[recipe.id] } as unknown as Recipe
})

/** Returns the recipe with this data file, or undefined for the visitor's own data. */
export const recipeFor = (dataName: string): Recipe | undefined => all.find(({ file }) => file === dataName)

export function setUpRecipes(chosen: (recipe: Recipe) => void): (id: string) => void {
  const choose = (recipe: Recipe) => {
    for (const card of byId('recipes').children) {
      card.setAttribute('aria-pressed', String((card as HTMLElement).dataset.recipe === recipe.id))
    }
    chosen(recipe)
  }
  const cards = all.map((recipe) => {
    const label = [make('strong', {}, recipe.title), make('span', {}, recipe.lead)]
    const attributes = { class: 'choice', 'data-recipe': recipe.id, 'aria-pressed': 'false' }
    return button(label, () => choose(recipe), attributes)
  })
  byId('recipes').replaceChildren(...cards)
  return (id) => choose(all.find((recipe) => recipe.id === id) ?? all[0])
}

/** Shows the recorded lesson of a recipe. A visitor's own question comes first, and takes the place of the last one. */
export function showRecording({ recording, model }: Recipe, own: readonly LessonCard[] = []): void {
  const answers = recording.answers.map(({ prompt: question, writesOn, labels, names, found, texts }) => {
    const [alone, taught] = found?.map(ranking) ?? texts ?? []
    if (taught !== undefined) return { question, alone: [alone], taught: [taught] }
    return { question, taught: [labels === undefined ? withNames(question, names ?? []) : scores(labels)], writesOn }
  })
  const title =
    own.length > 0 ? 'What it answers after the recorded lesson' : 'Recorded: what it answers after the lesson'
  showLesson(title, [...own, ...answers].slice(0, answers.length))
  byId('own').hidden = recording.adapter === undefined
  const note = byId('recorded-note')
  const next = missing(model)
  const { seconds, losses } = recording
  const knows = recording.answers.some(({ names }) => names) ? ', and the model alone knows none of these labels' : ''
  note.textContent = `Recorded in Node: ${losses.length} steps in ${seconds} s on two processors. These inputs were not in the data${knows}. ${next ?? 'Press “Teach it” to do the same here.'}`
}
