// Finds out what this browser can do: threads and WebGPU.

import { byId, inputOf } from './dom.js'

const PHONE = matchMedia('(max-width: 40rem)')

/** Folds large parts of the page on phones. It is also called for parts that are added later. */
export function foldOnPhones(within: ParentNode = document): void {
  for (const part of within.querySelectorAll<HTMLDetailsElement>('details.fold')) part.open = !PHONE.matches
}

PHONE.addEventListener('change', () => foldOnPhones())

const ASKED = 'lowrank-isolation-asked'
/** If the page is still not isolated so soon after a reload, another reload would not help. */
const SOON_MS = 10_000

/**
 * Asks a service worker to isolate the page, which gives WebAssembly threads. It reloads the page. A frame is only as
 * isolated as the page around it.
 */
export async function isolate(): Promise<void> {
  if (globalThis.crossOriginIsolated || top !== self || !('serviceWorker' in navigator)) return
  try {
    await navigator.serviceWorker.register(new URL('isolate.js', document.baseURI))
    await navigator.serviceWorker.ready
  } catch {
    return
  }
  if (Date.now() - Number(sessionStorage.getItem(ASKED)) < SOON_MS) return
  sessionStorage.setItem(ASKED, String(Date.now()))
  location.reload()
}

/** Returns the number of threads. ONNX Runtime would take half of the processors and at most 4, so only 1 of 2. */
export function threadCount(): number {
  if (!globalThis.crossOriginIsolated) return 1
  const { hardwareConcurrency } = navigator
  return Math.min(Math.max(4, Math.ceil(hardwareConcurrency / 2)), hardwareConcurrency, 8)
}

export async function showMachine(): Promise<void> {
  const count = threadCount()
  const threads = globalThis.crossOriginIsolated
    ? `${count} ${count === 1 ? 'thread' : 'threads'}`
    : '1 thread: this page could not be isolated from other sites, and browsers then allow no more'
  const { gpu } = navigator as { gpu?: { requestAdapter(): Promise<unknown> } }
  const isGpu = (await gpu?.requestAdapter().catch(() => null)) != null
  const words = isGpu ? 'WebGPU is here: choose it under “The model”' : 'No WebGPU here, none needed'
  const choice = inputOf('device').querySelector('[value=webgpu]') as HTMLOptionElement
  choice.disabled = !isGpu
  byId('machine').textContent = `${threads}. ${words}.`
}
