// Recipes: data with a fitting model and settings, and the results that scripts/record-page.mjs recorded.

import { ranking, scores, withNames } from './answers.js'
import type { Picture } from './data.js'
import { button, byId, make } from './dom.js'
import { showLesson } from './lesson.js'
import { type ModelChoice, missing } from './models.js'
import recipes from './recipes.json'
import recordings from './recorded.json'
import type { Job } from './runs.js'

export type Recipe = Omit<(typeof recipes)[number], 'model' | 'settings' | 'task'> & {
  readonly model: ModelChoice
  readonly task: Job['task']
  readonly settings: Readonly<Record<string, number>>
  readonly recording: Recording | undefined
}

interface Recording {
  readonly seconds: number
  readonly losses: readonly number[]
  readonly answers: readonly ({ readonly prompt: string } & Partial<Shown>)[]
}

/** Recorded answers: of the model alone, if it gives any, and of the adapter. */
interface Shown {
  readonly labels: Parameters<typeof scores>[0]
  readonly names: Parameters<typeof withNames>[1]
  readonly found: readonly [alone: Parameters<typeof ranking>[0], taught: Parameters<typeof ranking>[0]]
  readonly texts: readonly [alone: string, taught: string]
}

const CHOICES: Readonly<Record<string, ModelChoice>> = {
  bundled: { kind: 'bundled' },
  pictures: { kind: 'bundled', name: 'pictures' },
  minilm: { kind: 'bundled', name: 'minilm' },
  chat: { kind: 'hub', id: 'HuggingFaceTB/SmolLM2-135M-Instruct', dtype: 'q4' },
}

const recorded = recordings as unknown as Readonly<Record<string, Recording>>
const all = recipes.map(
  (recipe) => ({ ...recipe, model: CHOICES[recipe.model], recording: recorded[recipe.id] }) as unknown as Recipe,
)

/** Returns the questions of the recipe with this data file, or undefined for the visitor's own data. */
export const questionsFor = (dataName: string): readonly string[] | undefined =>
  all.find(({ file }) => file === dataName)?.prompts

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

/** Shows the recorded lesson of a recipe. */
export async function showRecording({ id, title, recording, model }: Recipe): Promise<void> {
  const answers = (recording?.answers ?? []).map(({ prompt: question, labels, names, found, texts }) => {
    const [alone, taught] = found?.map(ranking) ?? texts ?? []
    if (taught !== undefined) return { question, alone: [alone], taught: [taught] }
    return { question, taught: [labels === undefined ? withNames(question, names ?? []) : scores(labels)] }
  })
  showLesson(answers)
  const note = byId('recorded-note')
  note.textContent = ''
  const next = await missing(model)
  if (byId('recipes').querySelector('[aria-pressed=true]')?.getAttribute('data-recipe') !== id) return
  if (recording === undefined) {
    note.textContent = next ?? `There is no recording of “${title}”: press “Teach it” to see it.`
    return
  }
  const { seconds, losses } = recording
  const knows = answers.every(({ alone }) => alone === undefined)
    ? ', and the model alone knows none of these labels'
    : ''
  note.textContent = `Recorded: ${losses.length} steps in ${seconds} s on two processors. These inputs were not in the data${knows}. ${next ?? 'Press “Teach it” to do the same here.'}`
}

const SIZE = 48
/** The colors for each label: the hues in degrees of the background and of the shapes on it. */
const SCENES = { sunset: [15, 48], sea: [205, 190] }

/** Draws pictures to learn from: sunsets and seas. */
export async function drawnPictures(count: number): Promise<Picture[]> {
  const canvas = new OffscreenCanvas(SIZE, SIZE)
  const pen = canvas.getContext('2d')!
  const pictures: Picture[] = []
  for (const [label, [ground, form]] of Object.entries(SCENES)) {
    for (let i = 0; i < count; i++) {
      pen.fillStyle = `hsl(${ground + ((i * 7) % 24) - 12} 85% ${40 + (i % 5) * 6}%)`
      pen.fillRect(0, 0, SIZE, SIZE)
      pen.fillStyle = `hsl(${form} 80% 75%)`
      for (let part = 0; part < 3; part++)
        if (label === 'sea') pen.fillRect((i * 5 + part * 11) % 36, 14 + part * 10, 12, 2)
        else pen.fillRect(12 + ((i * 9) % 20) - part, 22 + part * 5, 14 + 2 * part, 3)
      pictures.push({ label, file: new File([await canvas.convertToBlob()], `${label}-${i}.png`) })
    }
  }
  return pictures
}
