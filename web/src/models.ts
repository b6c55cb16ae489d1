// Opens a model: the small model that comes with the page, a model on the Hub, or a folder on this machine.

import { configureHub, loadModel, MemoryDirectory, type Model, trainingTasks, webRuntime } from 'lowrank'
import gpuWasm from 'onnxruntime-web/ort-wasm-simd-threaded.asyncify.wasm?url'
import wasm from 'onnxruntime-web/ort-wasm-simd-threaded.wasm?url'
import ort from 'onnxruntime-web/wasm?url'
import gpuOrt from 'onnxruntime-web/webgpu?url'
import type { PageTask } from './data.js'
import { button, byId, guarded, inputOf, make, onFiles, sizeOf } from './dom.js'
import offered from './models.json'
import { textIn } from './store.js'

/** Says how to open a model again after a reload. */
export type ModelChoice =
  | { readonly kind: 'bundled'; readonly name?: string }
  | { readonly kind: 'hub'; readonly id: string; readonly dtype?: GraphDtype }
  | { readonly kind: 'folder' }

type GraphDtype = 'q4' | 'q8'

/** Models that the page offers, with their description and the most memory that training takes, in GB. */
export const MODELS = offered as readonly (Omit<(typeof offered)[number], 'choice'> & {
  readonly choice: ModelChoice
})[]

export interface OpenModel {
  readonly model: Model
  /** The argument of `loadModel`. It is the same value if the same model is opened again. */
  readonly source: unknown
  /** The name to show. */
  readonly name: string
  readonly choice: ModelChoice
  readonly device: Device
  readonly reads: 'text' | 'pictures'
  /** True if the model writes text. Other models give vectors, from which an adapter learns labels. */
  readonly writes: boolean
  readonly tasks: readonly PageTask[]
  readonly takesChats: boolean
}

export type Device = 'wasm' | 'webgpu'

/** The runtimes. The build with WebGPU is much larger, so it is only fetched if it is chosen. */
const RUNTIMES = { wasm: webRuntime(ort, wasm), webgpu: webRuntime(gpuOrt, gpuWasm) }

export function setUpModels(opened: (model: OpenModel) => Promise<void>) {
  let last: (() => Promise<void>) | undefined
  const buttons = () => document.querySelectorAll<HTMLButtonElement>('#models button, #hub button')
  const open = async (choice: ModelChoice, source: Parameters<typeof loadModel>[0]): Promise<void> => {
    last = () => open(choice, source)
    const state = byId('model-state')
    const meter = byId('model-meter')
    const before = state.textContent
    state.textContent = 'Opening…'
    meter.hidden = false
    for (const button of buttons()) button.disabled = true
    try {
      const device = inputOf('device').value as Device
      configureHub({ token: inputOf('token').value.trim() || undefined })
      const dtype = choice.kind === 'hub' ? choice.dtype : undefined
      const model = await loadModel(source, { runtime: RUNTIMES[device], ...(dtype && { dtype }) })
      // Otherwise the weights would be fetched in the first step, after the meter is hidden.
      for (const role of Object.keys(model.graphs) as (keyof Model['graphs'])[]) {
        await (await model.openGraph(role)).fetch()
      }
      const name = choice.kind === 'bundled' ? (choice.name ?? 'union-3m') : model.name
      const tasks = (await trainingTasks(model)).filter((task): task is PageTask => task.page !== undefined)
      const takesChats = await hasTemplate(model)
      await opened({ model, source, name, choice, device, ...abilities(model), tasks, takesChats })
      const layers = Number(model.config.num_hidden_layers)
      const parts = [
        model.config.model_type,
        Number.isFinite(layers) ? `${layers} blocks` : undefined,
        device === 'webgpu' ? 'on WebGPU' : undefined,
      ]
      state.textContent = `Open: ${name} (${parts.filter(Boolean).join(', ')})`
    } catch (error) {
      // The earlier model is still open.
      state.textContent = before
      if (!(error instanceof Error) || !error.message.includes('HF_TOKEN')) throw error
      // The Hub's error names an environment variable, which a page does not have.
      const words = error.message.replace(/,? and set HF_TOKEN to it/, '')
      throw new Error(`${words} In this page, paste it into "Access token of the Hub".`, { cause: error })
    } finally {
      meter.hidden = true
      for (const button of buttons()) button.disabled = false
    }
  }
  const shown = (work: () => Promise<void>) => guarded('model', 'The model cannot be opened', work)
  const openFolder = (files: readonly File[]) => shown(() => open({ kind: 'folder' }, files))
  const choose = async (choice: ModelChoice): Promise<void> => {
    const words = missing(choice)
    if (words !== undefined) throw new Error(words)
    if (choice.kind === 'bundled') await open(choice, await bundled(choice.name))
    if (choice.kind === 'hub') await open(choice, `hf:${choice.id.replace(/^hf:/, '')}`)
    if (choice.kind === 'folder') throw new Error('Open the folder of its model first, under “The model”.')
  }
  configureHub({
    on: {
      download({ name, byteLength, receivedBytes }) {
        const meter = byId('model-meter')
        const progress = meter.querySelector('progress') as HTMLProgressElement
        progress.value = byteLength === 0 ? 1 : receivedBytes / byteLength
        ;(meter.querySelector('span') as HTMLElement).textContent =
          `${name.split('/').at(-1)}: ${sizeOf(receivedBytes)} of ${sizeOf(byteLength)}`
      },
    },
  })
  const { deviceMemory } = navigator as { deviceMemory?: number }
  byId('models').replaceChildren(
    ...MODELS.map(({ choice, name, facts, memory, lead }) => {
      const isLarge = deviceMemory !== undefined && deviceMemory <= memory
      const fits = isLarge ? `This device has ${deviceMemory} GB: too little to train it.` : lead
      const label = [make('strong', {}, name), facts, make('span', {}, fits)]
      return button(label, () => void shown(() => choose(choice)), { class: 'choice' })
    }),
  )
  byId('hub').addEventListener('submit', (event) => {
    event.preventDefault()
    const field = inputOf('hub-id')
    void shown(() => choose({ kind: 'hub', id: field.value.trim() || field.placeholder }))
  })
  onFiles('folder', openFolder)
  byId('choices').addEventListener('submit', (event) => event.preventDefault())
  inputOf('device').addEventListener('change', () => void shown(async () => last?.()))
  return {
    choose,
    openFolder,
    reopen: async (device: Device) => {
      inputOf('device').value = device
      await last?.()
    },
  }
}

export const isSame = (a: ModelChoice, b: ModelChoice): boolean => JSON.stringify(a) === JSON.stringify(b)

/** Asked for by name: an optional file that does not lie beside the page would be an error in the browser's log. */
const FILES = ['config.json', 'tokenizer.json', 'tokenizer_config.json', 'onnx/model.onnx']
const fetched = new Map<string, MemoryDirectory>()

const bundled = (name?: string) => beside(name === undefined ? 'model/' : `model-${name}/`, FILES)

/** Fetches files of a folder of this site, such as 'model/'. */
export async function beside(place: string, files: readonly string[]): Promise<MemoryDirectory> {
  const known = fetched.get(place)
  if (known !== undefined) return known
  const contents = files.map(async (file) => {
    const response = await fetch(new URL(place + file, document.baseURI))
    if (!response.ok) throw new Error(`${place}${file}: the server answers ${response.status}.`)
    return [file, new Uint8Array(await response.arrayBuffer())] as const
  })
  const folder = new MemoryDirectory(Object.fromEntries(await Promise.all(contents)), place)
  fetched.set(place, folder)
  return folder
}

/** True if MiniLM is published with the page. vite.config.ts sets it. */
declare const HAS_MINILM: boolean

/** If a model is not published with this page, returns a message that says what to load instead. */
export const missing = (choice: ModelChoice): string | undefined =>
  HAS_MINILM || choice.kind !== 'bundled' || choice.name !== 'minilm'
    ? undefined
    : 'MiniLM does not lie beside this page. Under “The model”, load Xenova/all-MiniLM-L6-v2 from the Hub, or open a folder of it. Then press “Teach it”.'

function abilities({ config, preprocessorConfig, tokenizer }: Model): Pick<OpenModel, 'reads' | 'writes'> {
  if (tokenizer === undefined && preprocessorConfig !== undefined) return { reads: 'pictures', writes: false }
  const [name] = Array.isArray(config.architectures) ? config.architectures : []
  return { reads: 'text', writes: name === undefined || /ForCausalLM|LMHead|ForConditionalGeneration/.test(name) }
}

async function hasTemplate({ directory }: Model): Promise<boolean> {
  if (await directory.has('chat_template.jinja')) return true
  if (!(await directory.has('tokenizer_config.json'))) return false
  return JSON.parse(await textIn(directory, 'tokenizer_config.json')).chat_template != null
}
