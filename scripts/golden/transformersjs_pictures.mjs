// Lets transformers.js write texts about a picture, with the tiny models of tests/golden/graphs and with PEFT's
// adapters merged into them.
//
//     node scripts/golden/transformersjs_pictures.mjs SCRATCH MERGED [NAME …]
//
// SCRATCH: a folder for transformers.js 4.3.1, which scripts/transformers-js.mjs installs there. MERGED: what
// picture_texts.py --merged wrote. The picture already has the models' size, because transformers.js and transformers
// resize differently.

import { cpSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import { basename, dirname, join, resolve } from 'node:path'
import { installTransformers, loadTransformers, ROOT } from '../transformers-js.mjs'

const [scratch, merged, ...names] = process.argv.slice(2)
if (merged === undefined) {
  throw new Error('usage: node scripts/golden/transformersjs_pictures.mjs SCRATCH MERGED [NAME …]')
}

const MAX_NEW_TOKENS = 16
/** The placeholder of a picture in each family, and settings that keep its size. */
const FAMILIES = {
  llava: { place: '<image>', settings: {} },
  idefics3: { place: '<image>', settings: { size: { longest_edge: 16 }, do_image_splitting: false } },
  'qwen2-vl': { place: '<|vision_start|><|image_pad|><|vision_end|>', settings: {} },
}

installTransformers(scratch)
const { transformers, versions } = loadTransformers(scratch)
for (const name of names.length > 0 ? names : Object.keys(FAMILIES)) {
  const golden = join(ROOT, 'tests/golden/graphs', name)
  const { place, settings } = FAMILIES[name]
  const { data, width, height } = JSON.parse(readFileSync(join(golden, 'golden/texts.json'))).pictures.square
  const picture = new transformers.RawImage(new Uint8Array(Buffer.from(data, 'base64')), width, height, 3)
  const prompts = [
    { prompt: `${place} And the people said`, images: ['square'] },
    { prompt: `Of old ${place} the sea was`, images: ['square'] },
    // Left out for Qwen2-VL: for a text without pictures, transformers.js 4.3.1 gives it other positions than Python's
    // transformers.
    ...(name === 'qwen2-vl' ? [] : [{ prompt: 'And the people said unto him', images: [] }]),
  ]
  const base = await texts(golden, prompts, settings, picture)
  const mergedTexts = await texts(join(merged, name), prompts, settings, picture)
  const cases = prompts.map((prompt, i) => ({ ...prompt, base: base[i], merged: mergedTexts[i] }))
  const content = { versions, settings, maxNewTokens: MAX_NEW_TOKENS, cases }
  writeFileSync(join(golden, 'golden/transformers-js.json'), `${JSON.stringify(content)}\n`)
  console.log(name, JSON.stringify(cases))
}

/** Returns the tokens that follow each prompt. */
async function texts(source, prompts, settings, picture) {
  const folder = join(resolve(scratch), 'pictures', basename(source))
  rmSync(folder, { recursive: true, force: true })
  cpSync(source, folder, { recursive: true })
  const file = join(folder, 'preprocessor_config.json')
  writeFileSync(file, JSON.stringify({ ...JSON.parse(readFileSync(file)), ...settings }))
  const about = join(folder, 'config.json')
  const config = JSON.parse(readFileSync(about))
  // Published folders of this family have the flat config of transformers 4.
  if (config.model_type === 'qwen2_vl') writeFileSync(about, JSON.stringify({ ...config.text_config, ...config }))
  const { AutoProcessor, AutoModelForImageTextToText, env } = transformers
  env.localModelPath = dirname(folder)
  const processor = await AutoProcessor.from_pretrained(basename(folder))
  const model = await AutoModelForImageTextToText.from_pretrained(basename(folder), { dtype: 'fp32' })
  const written = []
  for (const { prompt, images } of prompts) {
    const inputs = images.length > 0 ? await inputsOf(processor, prompt, picture) : processor.tokenizer(prompt)
    const all = await model.generate({ ...inputs, max_new_tokens: MAX_NEW_TOKENS, do_sample: false })
    written.push(all.tolist()[0].slice(inputs.input_ids.dims[1]).map(Number))
  }
  await model.dispose()
  return written
}

/** LLaVA's processor takes the picture first. */
function inputsOf(processor, prompt, picture) {
  return processor.constructor.name === 'LlavaProcessor' ? processor(picture, prompt) : processor(prompt, [picture])
}
