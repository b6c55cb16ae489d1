// The visitor types a sentence, and the adapter of the recorded lesson labels it, before anything is taught. The model
// and the adapter load when the field gets the focus or a text.

import { type LoraAdapter, loadAdapter } from 'lowrank'
import { byId, guarded, inputOf } from './dom.js'
import type { LessonCard } from './lesson.js'
import { beside, type ModelChoice } from './models.js'
import { type Recipe, showRecording } from './recipes.js'

const FILES = ['adapter_config.json', 'adapter_model.safetensors']

/** The visitor's own sentence, or '' if there is none, or if the recipe has no adapter for it. */
export const ownSentence = (): string => (byId('own').hidden ? '' : inputOf('sentence').value.trim())

/** Returns a function that clears the field. */
export function setUpOwn(page: {
  recipe(): Recipe | undefined
  choose(choice: ModelChoice): Promise<void>
  /** Answers with the model alone and with the adapter. Returns undefined while the page is busy. */
  answer(adapter: LoraAdapter, question: string): Promise<LessonCard | undefined>
}): () => void {
  const say = (text: string) => {
    byId('own-state').textContent = text
  }
  let isBusy = false
  const label = async (): Promise<void> => {
    const recipe = page.recipe()
    const place = recipe?.recording.adapter
    if (recipe === undefined || place === undefined || isBusy) return
    isBusy = true
    try {
      say('Loading the model and its adapter, once …')
      const [folder] = await Promise.all([beside(place, FILES), page.choose(recipe.model)])
      const adapter = await loadAdapter(folder)
      say('Ready.')
      // The visitor types on while the model answers. Meanwhile a run may begin, or another recipe may be chosen.
      let asked: string | undefined
      while (asked !== ownSentence() && recipe === page.recipe()) {
        asked = ownSentence()
        const card = asked === '' ? undefined : await page.answer(adapter, asked)
        if (byId('own').hidden) return
        if (card !== undefined || asked === '') showRecording(recipe, card && [card])
        if (card !== undefined) say('Labelled here, in this page, by what the model learned in the recorded lesson.')
      }
    } finally {
      isBusy = false
    }
  }
  for (const event of ['focus', 'input'])
    inputOf('sentence').addEventListener(event, () => void guarded('hello', 'Your mail gets no label', label))
  byId('own').addEventListener('submit', (event) => event.preventDefault())
  return () => {
    inputOf('sentence').value = ''
    say('')
  }
}
