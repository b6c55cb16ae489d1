// "This run in a few lines": code for the same run in Node, in a page and on the command line, and for its adapter in
// Python.

import { byId, copyButton, make } from './dom.js'
import type { Job } from './runs.js'

/** Classes of transformers, with the extra arguments that they need. */
const CLASSES: Readonly<Record<string, readonly [kind: string, extra?: string]>> = {
  'causal-lm': ['AutoModelForCausalLM'],
  embedding: ['AutoModel'],
  'text-classification': ['AutoModelForSequenceClassification', ', num_labels=3'],
  'token-classification': ['AutoModelForTokenClassification', ', num_labels=7'],
  'image-classification': ['AutoModelForImageClassification', ', num_labels=2'],
}

export function showLines(job: Job): void {
  const { name, choice, dataName, task, settings } = job
  const { maxSteps, learningRate, batchSize, maxLength, rank } = settings
  const model = choice.kind === 'hub' ? choice.id : choice.kind === 'folder' ? './model' : `./${job.modelName}`
  const options = `task: '${task}', maxSteps: ${maxSteps}, learningRate: ${learningRate}, batchSize: ${batchSize},
  maxLength: ${maxLength}, config: { rank: ${rank}, alpha: ${2 * rank} },`
  const [kind, extra = ''] = CLASSES[task ?? 'causal-lm'] ?? []
  const forms = {
    Node: `import { train } from 'lowrank'
await train({
  model: '${model}', data: '${dataName}', out: '${name}',
  ${options}
})`,
    'In a page': `import { loadModel, train, webRuntime } from 'lowrank'
import ort from 'onnxruntime-web/wasm?url'
import wasm from 'onnxruntime-web/ort-wasm-simd-threaded.wasm?url'
const model = await loadModel('${choice.kind === 'hub' ? `hf:${choice.id}` : '/model/'}', { runtime: webRuntime(ort, wasm) })
const { adapter } = await train({
  model, data: file, // a File, such as that of an input
  ${options}
})`,
    'Command line': `npx lowrank train --model ${model} --data ${dataName} --out ${name} --task ${task} \\
  --max-steps ${maxSteps} --learning-rate ${learningRate} --batch-size ${batchSize} \\
  --max-length ${maxLength} --rank ${rank} --alpha ${2 * rank}`,
    'Python with PEFT': `from peft import PeftModel
from transformers import ${kind}, AutoTokenizer
base = ${kind}.from_pretrained("${model}"${extra})
tokenizer = AutoTokenizer.from_pretrained("${model}")
model = PeftModel.from_pretrained(base, "${name}")`,
  }
  byId('lines').replaceChildren(
    ...Object.entries(forms).map(([title, code]) => {
      const shown = make('pre', { tabindex: '0', 'aria-label': title }, make('code', {}, code))
      return make(
        'details',
        {},
        make('summary', {}, title),
        shown,
        copyButton(() => code),
      )
    }),
  )
}
