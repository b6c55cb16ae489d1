// The data of a run: a text, rows with labels, or folders of pictures. Also opens folders that are dropped on the page.

import type { DataError, TaskFacts } from 'lowrank'
import { buttonOf, byId, guarded, make, onFiles } from './dom.js'
import type { OpenModel } from './models.js'

export interface Picture {
  readonly label: string
  readonly file: File
}

export interface LearningData {
  /** The name of the file. Its extension tells the format. */
  readonly name: string
  /** The text, or the beginning of a large file. */
  readonly text: string
  readonly blob: Blob
  /** The pictures to learn from. Empty if the adapter learns from text. */
  readonly pictures: readonly Picture[]
}

export type PageTask = TaskFacts & Required<Pick<TaskFacts, 'page'>>

const PICTURE = /\.(png|jpe?g|webp|gif|bmp|avif)$/i
/** How many pictures of each label are shown. */
const SHOWN = 6
/** A larger text would make the text field slow. Such a file is used without showing all of it. */
const MOST_SHOWN = 20 << 20
const HEAD_BYTES = 1 << 16
/** The first bytes of files that are not texts. */
const NO_TEXT: readonly (readonly [RegExp, string])[] = [
  [/^(\x89PNG|\xff\xd8\xff|GIF8|BM.{4}\0|RIFF.{4}WEBP)/s, 'a picture'],
  [/^PK[^ -~]{2}/, 'a zip archive'],
  [/^%PDF-/, 'a PDF'],
  [/\0/, 'no text'],
]

export function fieldsOf(text: string, tasks: readonly PageTask[]): readonly string[] {
  const [first] = text.trimStart().split('\n', 1)
  if (/^[[{]/.test(first)) return entriesOf(/\{.*\}/.exec(first)?.[0] ?? '').map(([name]) => name)
  const names = first.split(/[,\t]/).map((name) => name.trim().replace(/^"(.*)"$/, '$1'))
  return names.length > 1 && bestTask(names, tasks) !== undefined ? names : ['text']
}

function entriesOf(line: string): [name: string, value: unknown][] {
  try {
    return Object.entries(JSON.parse(line))
  } catch {
    return []
  }
}

/** Field names for the second text of a pair. */
const PARTNERS = ['textPair', 'positive', 'answer', 'sentence2']
const MOST_PARTNERS = 500

/**
 * Returns the second texts of all pairs in JSON lines or a table, without duplicates. A search can find these texts.
 */
export function partnersIn(text: string): string[] {
  const lines = text.match(/^\{.*\}$/gm)?.map(entriesOf)
  const [names = [], ...rows] = lines === undefined ? tableOf(text) : []
  const records = lines ?? rows.map((row) => row.map((cell, i) => [names[i], cell] as const))
  const partners = records.flat().flatMap(([name, value]) => (PARTNERS.includes(name) ? [String(value)] : []))
  return [...new Set(partners)].slice(0, MOST_PARTNERS)
}

/** Splits a table into rows and cells. A cell in quotes may contain separators and line breaks. */
function tableOf(text: string): string[][] {
  const rows: string[][] = [[]]
  for (const [, quoted, plain, end] of text.matchAll(/(?:"((?:[^"]|"")*)"|([^,\t\r\n]*))([,\t]|\r?\n|$)/g)) {
    rows.at(-1)?.push(quoted?.replaceAll('""', '"') ?? plain)
    if (end !== ',' && end !== '\t') rows.push([])
  }
  return rows
}

/** Returns the task whose example record uses the most of these fields and no other fields. */
function bestTask(fields: readonly string[], tasks: readonly PageTask[]): PageTask | undefined {
  const fitting = tasks.flatMap((task) =>
    task.records
      .map((record) => ({ task, fields: Object.keys(record) }))
      .filter(({ fields: needed }) => {
        return needed.every((name) => fields.includes(name))
      }),
  )
  return fitting.sort((a, b) => b.fields.length - a.fields.length)[0]?.task
}

export function taskOf(open: OpenModel, { text, pictures }: Pick<LearningData, 'text' | 'pictures'>): PageTask {
  if (pictures.length > 0 && open.reads !== 'pictures')
    throw new Error(
      `${open.name} reads text. To learn from pictures, open a model such as ViT, DeiT or DINOv2 under “The model”.`,
    )
  if (pictures.length === 0 && open.reads === 'pictures')
    throw new Error(`${open.name} reads pictures. Open a folder that has a folder of pictures for each label.`)
  if (pictures.length === 0 && text.trim() === '')
    throw new Error('There is no text to learn from. Write or paste some, or choose a recipe.')
  const task = bestTask(pictures.length > 0 ? ['image', 'label'] : fieldsOf(text, open.tasks), open.tasks)
  if (task !== undefined) return task
  throw new Error(
    `${open.name} cannot learn from this. It learns from records with these fields: ${open.tasks
      .map(({ records: [record] }) => Object.keys(record).join(' and '))
      .join('; ')}.`,
  )
}

function picturesOf(files: readonly File[]): Picture[] {
  const pictures = files
    .filter(({ name }) => PICTURE.test(name))
    .map((file) => ({ label: file.webkitRelativePath.split('/').at(-2) ?? '', file }))
  const labels = new Set(pictures.map(({ label }) => label))
  if (labels.size > 1) return pictures
  throw new Error(
    pictures.length === 0
      ? 'There are no pictures in this folder.'
      : 'All pictures are in one folder. Put those of each label into a folder of their own, named by the label.',
  )
}

export class DataField {
  #pictures: readonly Picture[] = []
  #open: OpenModel | undefined
  #large: { file: Blob; head: string } | undefined
  readonly #urls: string[] = []
  /** True from an error of the data until they change. */
  isFaulty = false
  /** How often the visitor has changed the data. */
  edits = 0

  constructor(private readonly learns: (task: PageTask) => void) {
    const area = this.#area
    area.addEventListener('input', () => {
      this.edits++
      delete area.dataset.name
      this.#large = undefined
      byId('data-state').textContent = ''
      this.#tell()
    })
    onFiles('data-file', ([file]) => this.open(file))
    onFiles('pictures-folder', (files) => {
      void guarded('train', 'The pictures cannot be opened', async () => this.openPictures(files))
    })
    byId('no-pictures').addEventListener('click', () => this.show([]))
    area.addEventListener('dragover', () => area.classList.add('over'))
    for (const end of ['dragleave', 'drop']) area.addEventListener(end, () => area.classList.remove('over'))
  }

  /** Takes the file of a visitor. */
  open(file: File): void {
    this.edits++
    void guarded('train', 'The file cannot be read', () => this.read(file))
  }

  /** Takes the pictures of a visitor. */
  openPictures(files: readonly File[]): void {
    const pictures = picturesOf(files)
    this.edits++
    this.show(pictures)
  }

  use(open: OpenModel): void {
    this.#open = open
    this.#tell()
  }

  get value(): LearningData {
    const { value, dataset } = this.#area
    const text = this.#large?.head ?? value
    const start = text.trimStart()
    const isTable = fieldsOf(start, this.#open?.tasks ?? []).length > 1
    const ending = /^[[{]/.test(start) ? 'jsonl' : isTable ? (/\t/.test(start) ? 'tsv' : 'csv') : 'txt'
    const blob = this.#large?.file ?? new Blob([value])
    return { name: dataset.name ?? `pasted.${ending}`, text, blob, pictures: this.#pictures }
  }

  /** Shows pictures instead of the text, or the text again if there are no pictures. */
  show(pictures: readonly Picture[]): void {
    for (const url of this.#urls.splice(0)) URL.revokeObjectURL(url)
    this.#pictures = pictures
    const groups = new Map<string, File[]>()
    for (const { label, file } of pictures) groups.set(label, [...(groups.get(label) ?? []), file])
    byId('gallery').replaceChildren(...[...groups].map(([label, files]) => this.#group(label, files)))
    byId('pictures').hidden = pictures.length === 0
    byId('text-data').hidden = pictures.length > 0
    byId('train-heading').textContent = `Teach it your ${pictures.length > 0 ? 'pictures' : 'text'}`
    this.#tell()
  }

  /** Shows the line of the data that cannot be read. Nothing can be taught until the data change. */
  blame({ where = '' }: DataError): void {
    this.isFaulty = true
    byId('lesson').textContent = ''
    const line = Number(/line (\d+)/.exec(where)?.[1])
    const lines = this.#area.value.split('\n')
    if (!(line <= lines.length)) return
    byId('train').querySelector('details')!.open = true
    const start = lines.slice(0, line - 1).join('\n').length + Number(line > 1)
    this.#area.setSelectionRange(start, start + lines[line - 1].length)
    this.#area.focus()
  }

  #group(label: string, files: readonly File[]): HTMLElement {
    const thumbs = files.slice(0, SHOWN).map((file) => {
      const src = URL.createObjectURL(file)
      this.#urls.push(src)
      return make('img', { src, alt: '' })
    })
    return make('li', {}, make('strong', {}, label), ` ${files.length}`, make('span', { class: 'thumbs' }, ...thumbs))
  }

  #tell(): void {
    if (this.isFaulty) buttonOf('start').disabled = this.isFaulty = false
    const line = byId('lesson')
    const data = this.value
    if (this.#open === undefined || (data.text.trim() === '' && data.pictures.length === 0)) {
      line.textContent = ''
      return
    }
    try {
      const task = taskOf(this.#open, data)
      this.learns(task)
      line.textContent = task.page.lesson
    } catch (error) {
      line.textContent = (error as Error).message
    }
  }

  async read(file: Blob, name: string = (file as File).name): Promise<void> {
    const start = await file.slice(0, HEAD_BYTES).arrayBuffer()
    const bytes = String.fromCharCode(...new Uint8Array(start))
    const kind = NO_TEXT.find(([first]) => first.test(bytes))?.[1]
    if (kind !== undefined) {
      const hint = kind === 'a picture' ? ' Press “Open pictures” to learn from pictures.' : ''
      throw new Error(`${name} is ${kind}. The page learns from texts, tables and JSON lines.${hint}`)
    }
    const isLarge = file.size > MOST_SHOWN
    this.#large = isLarge ? { file, head: new TextDecoder().decode(start) } : undefined
    const area = this.#area
    area.value = isLarge ? '' : await file.text()
    area.dataset.name = name
    area.placeholder = isLarge ? `${name} is too large to be shown. It is used as it is.` : ''
    byId('data-state').textContent = `${name}, ${(file.size / 1000).toFixed(0)} kB`
    this.show([])
  }

  get #area(): HTMLTextAreaElement {
    return byId<HTMLTextAreaElement>('data')
  }
}

interface Takers {
  model(files: readonly File[]): Promise<void>
  adapter(name: string, files: readonly File[]): Promise<void>
  pictures(files: readonly File[]): void
  data(file: File): void
}

/** Opens what is dropped anywhere on the page: folders by what they contain, and a file as data. */
export function setUpDrop(takers: Takers): void {
  document.addEventListener('dragover', (event) => event.preventDefault())
  document.addEventListener('drop', (event) => {
    event.preventDefault()
    const entry = [...(event.dataTransfer?.items ?? [])].map((item) => item.webkitGetAsEntry()).find(isFolder)
    const file = event.dataTransfer?.files[0]
    if (entry === undefined) {
      if (file !== undefined) takers.data(file)
      return
    }
    void guarded('train', 'The folder cannot be opened', async () => {
      const files = await filesOf(entry)
      const has = (name: RegExp) => files.some(({ webkitRelativePath }) => name.test(webkitRelativePath))
      if (has(/^[^/]+\/adapter_config\.json$/)) return takers.adapter(entry.name, files)
      if (has(/^[^/]+\/config\.json$/) || has(/\.onnx$/)) return takers.model(files)
      if (has(PICTURE)) return takers.pictures(files)
      throw new Error(
        `${entry.name}: neither a model nor an adapter. A model has config.json and an .onnx file, an adapter has adapter_config.json. Pictures lie in a folder for each label.`,
      )
    })
  })
}

function isFolder(entry: FileSystemEntry | null): entry is FileSystemDirectoryEntry {
  return entry?.isDirectory === true
}

/** Lists the files of a dropped folder. Each gets its path, like the files of a picked folder. */
async function filesOf(folder: FileSystemDirectoryEntry): Promise<File[]> {
  const reader = folder.createReader()
  const files: File[] = []
  // A reader returns some entries at a time, and an empty list at the end.
  for (;;) {
    const entries = await new Promise<FileSystemEntry[]>((resolve, reject) => reader.readEntries(resolve, reject))
    if (entries.length === 0) return files
    for (const entry of entries) {
      if (isFolder(entry)) files.push(...(await filesOf(entry)))
      else {
        const fileEntry = entry as FileSystemFileEntry
        const file = await new Promise<File>((resolve, reject) => fileEntry.file(resolve, reject))
        files.push(Object.defineProperty(file, 'webkitRelativePath', { value: fileEntry.fullPath.slice(1) }))
      }
    }
  }
}
