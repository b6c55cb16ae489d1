// The page: choose data and a model, train, compare the answers, and keep the adapter.

import type { LoraAdapter } from 'lowrank'
import { setUpKept } from './adapters.js'
import { KINDS } from './answers.js'
import { setUpDrop } from './data.js'
import { byId, guarded, inputOf } from './dom.js'
import { type LessonCard, showLesson } from './lesson.js'
import { showLines } from './lines.js'
import { askAboutLink, showShare } from './link.js'
import { foldOnPhones, isolate, showMachine } from './machine.js'
import { type Device, isSame, type ModelChoice, type OpenModel, setUpModels } from './models.js'
import { ownSentence, setUpOwn } from './own.js'
import { type Recipe, recipeFor, setUpRecipes, showRecording } from './recipes.js'
import type { Job } from './runs.js'
import { isFull, type KeptAdapter, keepAdapter, keptAdapters, openKept } from './store.js'
import { readJob, Trainer } from './train.js'
import { nextFree, Writer } from './write.js'

await isolate()
foldOnPhones()
const machine = showMachine()

let opened: OpenModel | undefined
let recipe: Recipe | undefined
/** The questions that the lesson asks while a run learns. */
let asked: readonly string[] = []
/** Settles when the model of the last choice is open. A choice that comes while a model loads waits until then. */
let choosing = Promise.resolve()
const choose = (choice: ModelChoice): Promise<void> => {
  const isOpen = () => opened !== undefined && isSame(opened.choice, choice)
  choosing = choosing.catch(() => {}).then(() => (isOpen() ? undefined : models.choose(choice)))
  return choosing
}
const reopen = (device: Device) => models.reopen(device)
const writer = new Writer(reopen, (name, adapter) => keep(name, adapter))
const trainer = new Trainer({
  choose,
  reopen,
  begin(job) {
    asked = questionsOf(job)
    byId('own').hidden = true
    const waiting = asked.map((question) => ({ question, taught: ['…'] }))
    showLesson('While it learns', waiting, 'Not yet')
    byId('recorded-note').textContent = byId('opened').textContent = ''
  },
  answer: (adapter, job, when) => showAnswers(adapter, job, when, () => 'While it learns'),
  reset: () => recipe && show(recipe),
  makeRoom: (work) => writer.makeRoom(work),
  async trained(adapter, job, gain, time) {
    const kept = new Set((await keptAdapters()).map(({ name }) => name))
    const name = nextFree(job.name, (taken) => kept.has(taken) || writer.has(taken))
    await writer.add(name, adapter, job.texts)
    showLines({ ...job, name })
    await keep(name, adapter, { job, gain })
    await showAnswers(adapter, job, 'After the lesson', (right) => `It has learned${right}, ${time}`)
    byId('next').hidden = false
    if (writer.hasInput) await guarded('write', 'The model cannot answer', () => writer.write())
  },
})
const models = setUpModels(async (open) => {
  await writer.use(open)
  trainer.use(open)
  opened = open
})
const listKept = setUpKept(async ({ name, job }) => {
  if (!writer.has(name)) await openBeside(job?.choice, name, await openKept(name), job?.texts)
  if (job !== undefined) showLines({ ...job, name })
}, showShare)

/** Keeps an adapter in "My adapters", unless it came from a link and is already there. */
async function keep(wanted: string, adapter: LoraAdapter, from: Partial<KeptAdapter> = {}): Promise<void> {
  const kept = await keptAdapters()
  if (from.link !== undefined && kept.some(({ link }) => link === from.link)) return
  const name = nextFree(wanted, (taken) => kept.some((adapter) => adapter.name === taken))
  try {
    await keepAdapter(name, adapter, { ...from, modelName: from.job?.modelName ?? opened?.name ?? 'a model' })
  } catch (error) {
    if (!isFull(error)) throw error
    byId('disk').textContent = 'The browser has no more space: download the adapter to keep it.'
    byId('disk').hidden = false
  }
  await listKept()
}

/** Opens an adapter, and its model if another model is open. */
async function openBeside(
  choice: ModelChoice | undefined,
  name: string,
  adapter: LoraAdapter,
  texts?: readonly string[],
): Promise<void> {
  if (choice !== undefined) await choose(choice)
  await writer.add(name, adapter, texts)
  byId('write').scrollIntoView()
}

/**
 * The questions of the lesson: those of the recipe, with the visitor's own sentence, if any, in place of the first. For
 * other data, it is the input of the page.
 */
function questionsOf({ dataName }: Job): readonly string[] {
  const [own, prompts] = [ownSentence(), recipeFor(dataName)?.prompts]
  if (prompts === undefined) return [inputOf('prompt').value]
  return own === '' ? prompts : [own, ...prompts.slice(1)]
}

async function showAnswers(
  adapter: LoraAdapter,
  job: Job,
  when: string,
  title: (right: string) => string,
): Promise<void> {
  const cards = await writer.answersOf(adapter, asked, job.texts)
  if (cards === undefined) byId('lesson-title').textContent = title('')
  else showLesson(title(rightIn(cards, job)), cards, when)
}

/** Says how many questions of a recipe have the right label first, and nothing if the right labels are not known. */
function rightIn(cards: readonly LessonCard[], { dataName }: Job): string {
  const { prompts, labels = [] } = recipeFor(dataName) ?? {}
  const known = cards.flatMap(({ question, taught: [shown] }) => {
    const label = labels[prompts?.indexOf(question) ?? -1]
    return label === undefined ? [] : [(shown as Element).querySelector('li span')?.textContent === label]
  })
  return known.length === 0 ? '' : `: ${known.filter(Boolean).length} of ${known.length} right`
}

function show(chosen: Recipe): void {
  clearOwn()
  showRecording(chosen)
}

async function useRecipe(chosen: Recipe): Promise<void> {
  const { id, file, model, task, prompts, settings } = chosen
  const { edits } = trainer.data
  trainer.want(model)
  for (const [field, value] of Object.entries({ ...settings, name: id })) inputOf(field).value = String(value)
  if (opened === undefined) writer.tell(KINDS[task ?? ''] ?? 'text')
  const [prompt] = prompts
  if (prompt !== undefined) inputOf('prompt').value = prompt
  const response = await fetch(new URL(`samples/${file}`, document.baseURI))
  if (!response.ok) throw new Error(`${file}: the server answers ${response.status}.`)
  const sample = await response.blob()
  // A slow file must not replace what the visitor wrote or chose meanwhile.
  if (recipe !== chosen || trainer.data.edits !== edits) return
  await trainer.data.read(sample, file)
  const name = model.kind === 'hub' ? model.id : model.kind === 'bundled' && model.name ? model.name : 'union-3m'
  showLines(readJob({ name, choice: model }, file, task))
}

const clearOwn = setUpOwn({
  recipe: () => recipe,
  choose,
  answer: async (adapter, question) => {
    inputOf('prompt').value = question
    return (await writer.answersOf(adapter, [question], []))?.[0]
  },
})
setUpDrop({
  model: models.openFolder,
  adapter: (name, files) => writer.openFolder(name, files),
  pictures: (files) => trainer.data.openPictures(files),
  data: (file) => trainer.data.open(file),
})

byId('next').addEventListener('click', () => {
  byId('write').scrollIntoView()
  const prompt = inputOf('prompt')
  prompt.placeholder = prompt.value
  prompt.value = ''
  prompt.focus()
})
const chooseRecipe = setUpRecipes((chosen) => {
  recipe = chosen
  if (!trainer.hasRun) show(chosen)
  void guarded('hello', 'The recipe cannot be loaded', () => useRecipe(chosen))
})
await guarded('train', 'The last run cannot be read', async () => {
  if (!(await trainer.restore())) chooseRecipe('mails')
  await listKept()
  askAboutLink(async (choice, name, adapter, { link, ask }) => {
    await openBeside(choice, name, adapter)
    byId('opened').textContent = `The adapter ${name} is open. Compare the model with it and without it:`
    if (ask !== '') inputOf('prompt').value = ask
    await keep(name, adapter, { link })
    await writer.write()
  })
})
await machine
document.body.dataset.ready = ''
