'use client'

import { useRef, useState } from 'react'

async function open() {
  // Imported here, so that only the browser loads them.
  const { env } = await import('@huggingface/transformers')
  const { pipelineWithAdapters } = await import('lowrank/transformers')
  const here = (path) => new URL(path, location.origin).href
  env.backends.onnx.wasm.wasmPaths = here('/ort/')
  return pipelineWithAdapters('text-generation', here('/model/'), { adapters: { mine: here('/adapter/') } })
}

export default function Page() {
  const opening = useRef()
  const [texts, setTexts] = useState({})

  async function write(event) {
    event.preventDefault()
    const prompt = new FormData(event.currentTarget).get('prompt')
    opening.current ??= open()
    const write = await opening.current
    for (const adapter of [null, 'mine']) {
      const [{ generated_text }] = await write(prompt, { adapter, max_new_tokens: 20, do_sample: false })
      setTexts((texts) => ({ ...texts, [adapter ?? 'alone']: generated_text }))
    }
  }

  return (
    <>
      <form onSubmit={write}>
        <input name="prompt" aria-label="Prompt" defaultValue="And the people" />
        <button>Write</button>
      </form>
      <h2>The model alone</h2>
      <p id="alone">{texts.alone}</p>
      <h2>With the adapter</h2>
      <p id="mine">{texts.mine}</p>
    </>
  )
}
