// Writes docs/conformance.md from a run of the matrix.

import { type CellResult, TOLERANCES } from './check.js'
import type { Cell, Matrix } from './golden.js'

const MARKS: Readonly<Record<CellResult['status'], string>> = {
  pass: '✓',
  'peft-refuses': 'P',
  'lowrank-refuses': 'L',
  fail: '✗',
  blank: '',
}

export function formatTable(matrix: Matrix, results: ReadonlyMap<Cell, CellResult>): string {
  const notes = new Map<string, number>()
  const noteOf = (message: string) => notes.get(message) ?? notes.set(message, notes.size + 1).get(message)!
  const rows = Object.entries(matrix.options).map(([option, title]) => {
    const own = [...results].filter(([cell]) => cell.option === option)
    const marks = own.map(([, { status, message }]) => {
      return MARKS[status] + (message === undefined ? '' : ` [${noteOf(message)}](#notes)`)
    })
    return [title, ...marks]
  })
  const count = (status: CellResult['status']) =>
    [...results.values()].filter((result) => result.status === status).length
  const { peft, transformers, torch } = matrix.versions
  return `# Conformance with PEFT

<!-- Written by \`npm run conformance\`; a test fails when it differs from the result of the suite. -->

This table compares lowrank with PEFT ${peft} (transformers ${transformers}, torch ${torch}). Each cell is one option on one architecture, with an adapter folder that PEFT saved: its layers have different ranks, and B is not zero. Both load the folder, and tests compare the numbers of parameters, the outputs and the merged weights. The bases have random weights of a few kB. [tests/conformance](../tests/conformance) runs without Python, on data that [scripts/golden/conformance.py](../scripts/golden/conformance.py) makes.

${results.size} cells: ${count('pass')} conform (✓), ${count('peft-refuses')} are refused by PEFT (P), ${count('lowrank-refuses')} by lowrank (L), ${count('fail')} fail (✗).

${line(['', ...Object.values(matrix.architectures)])}
${line(['---', ...Object.keys(matrix.architectures).map(() => ':---:')])}
${rows.map(line).join('\n')}

## Bases that transformers saved

transformers 5 gives many tensors other names when it saves a model, ties some, and leaves some out. So adapters are also merged into bases that \`save_pretrained\` wrote, and compared with what PEFT merges and \`save_pretrained\` writes:

- [tests/merge/plan/names.test.ts](../tests/merge/plan/names.test.ts): BART, BLOOM, CLIP, DeBERTa-v2, DeiT, DINOv2, DistilBERT, dots1, Falcon, Gemma 3 (text, and with images), GPT-NeoX, GraniteMoE, Granite 4 Vision, LLaVA, Mamba, MiniMax-M3-VL, Mixtral, ModernBERT, NomicBERT, PaliGemma, Phi-3, PhiMoE, Qwen2-VL, Qwen2.5-VL, Qwen3, RoBERTa, SegFormer, Swin, ViT, Whisper. Fifteen of them are tested with \`use_rslora\`, \`use_dora\`, \`bias\`: all, and \`rank_pattern\` with \`alpha_pattern\`
- [tests/merge/plan/heads.test.ts](../tests/merge/plan/heads.test.ts): BERT, DeBERTa-v2, DistilBERT, Mistral, ModernBERT, Qwen2, RoBERTa, with heads that the base lacks
- [tests/merge/plan/tied-models.test.ts](../tests/merge/plan/tied-models.test.ts): ALBERT, BART, BERT, BioGPT, BLIP-2, DeBERTa-v2, DistilBERT, ELECTRA, Gemma 3, GPT-1, GPT-2, GPT-NeoX, Llama, M2M100, Mamba, Marian, mBART, ModernBERT, MPNet, RoBERTa, T5, Whisper, XLM, XLNet, with tied weights
- [tests/merge/plan/settings.test.ts](../tests/merge/plan/settings.test.ts): Llama, with settings that do nothing, or look wrong: an alpha of 0, a dropout of 1, empty lists of tokens, VeLoRA, unknown keys

## Graphs and exactness

The table above is about checkpoints. Sessions and merges of \`.onnx\` graphs are compared with PEFT too, and so is what rounding does:

- [tests/run/kinds.test.ts](../tests/run/kinds.test.ts): each kind of part that a session takes, on exports by both exporters of PyTorch, with PEFT’s logits to 1e-5
- [tests/merge/onnx-kinds.test.ts](../tests/merge/onnx-kinds.test.ts): the same parts merged into graphs
- [tests/merge/chunks/golden.test.ts](../tests/merge/chunks/golden.test.ts): in bf16, at least 99.99 % of the merged values are equal to the float64 result after one rounding. Four adapters change 1,327,104 values, and all but 3 are equal to PyTorch’s float32 sums, rounded once. These 3 differ by the smallest difference that the type can store

## Training

Losses, gradients and steps are compared with Python for tiny models, and tokens with those of its tokenizers and processors:

- [tests/train/](../tests/train) and [tests/model/](../tests/model): LoRA, DoRA, rsLoRA, LoRA+, biases, whole modules and trained tokens, with PEFT on PyTorch
- [tests/train/tasks/dpo.test.ts](../tests/train/tasks/dpo.test.ts), [kto.test.ts](../tests/train/tasks/kto.test.ts): tokens, probabilities, rewards, the estimate of KL, losses and gradients, with TRL’s \`DPOTrainer\` and \`KTOTrainer\`, for texts and for answers of one message
- chats with pictures on LLaVA, Idefics3, Qwen2-VL and Gemma 3, and texts for texts on T5 and BART, with PEFT and transformers
- \`scripts/golden/handoff.py\`: handed-off runs in float32 by TRL 1.16 on a CPU, whose losses, first gradient norm and weights after 5 steps are lowrank’s to 1e-4, for LoRA, rsLoRA, DoRA, DPO and KTO; \`trl\` itself runs the written settings

With the same settings, lowrank also learns as much. This is spam against other mail on MiniLM-L6: 800 mails for training, 100 steps, 500 other mails for evaluation, three seeds (\`bench/agreement\`):

| | lowrank | PEFT |
| --- | --- | --- |
| accuracy | 0.949 ± 0.007 | 0.942 ± 0.016 |
| F1 | 0.949 ± 0.007 | 0.942 ± 0.016 |

And these are vectors, beside sentence-transformers with PEFT: the subject of a mail must find its text among 372 texts: MiniLM-L6, 960 pairs, 30 steps of 32 pairs, in-batch negatives, three seeds (\`bench/agreement\`):

| | lowrank | sentence-transformers |
| --- | --- | --- |
| recall@1 | 0.445 ± 0.006 | 0.437 ± 0.004 |
| recall@10 | 0.652 ± 0.006 | 0.649 ± 0.004 |
| mrr | 0.519 ± 0.002 | 0.512 ± 0.003 |

## Other formats

- GGUF: adapters of twelve small models in llama.cpp (node-llama-cpp 3.22.1), with PEFT’s logits. In f32, they differ by at most 1e-5, and for Gemma 1 to 3 by at most 5e-4, as Gemma without an adapter does
- vLLM 0.32 on a CPU, with SmolLM2-135M in float32 and two adapters that lowrank had trained: the same texts as \`lowrank serve\`, 24 of 24 ([check_vllm.py](../scripts/golden/check_vllm.py))

## What ✓ means

| check | compared | tolerance, relative to a tensor’s largest value |
| --- | --- | --- |
| counts | trained parameters, layers, kinds, ranks, alphas; scaling; norms of A, B and s·B·A | exact; 1e-15; 1e-9 |
| forward | each adapted module’s output in f32, not merged and merged | ${exponent(TOLERANCES.forward)} |
| merge | every tensor of the merged checkpoint in f32 | ${exponent(TOLERANCES.merge)}; bit for bit where PEFT changes nothing |
| bf16, f16 | the same, written in 16 bits | one rounding of a value within ${exponent(TOLERANCES.merge)} |
| file | the folder saved again | the same bytes; the config’s content |

These checks run in every cell, except for merges that PEFT cannot do or does wrongly, as a note says. lowrank refuses to merge adapters that PEFT can run but not merge; a note quotes PEFT’s message. If base and adapter have 16 bits, the merge is compared in that type. Tied embeddings are merged as in PEFT: with \`tied: 'keep'\`, and with \`untie\` if one use has a saved copy.

## Where PEFT does something else

[tests/conformance/differences.test.ts](../tests/conformance/differences.test.ts) has the results of both for each case.

| case | PEFT | lowrank |
| --- | --- | --- |
| merging into 16 bits with \`safe_merge\` ([#1388](https://github.com/huggingface/peft/issues/1388), [#2502](https://github.com/huggingface/peft/issues/2502)) | rounds s·B·A, then the sum | rounds once, as PEFT does without \`safe_merge\` |
| tied embeddings ([#2018](https://github.com/huggingface/peft/issues/2018), [#2777](https://github.com/huggingface/peft/issues/2777)) | a merge also changes the other use, with a warning | unties them, which gives the model that was trained, with a warning. \`tied: 'keep'\` gives PEFT’s result |
| \`trainable_token_indices\` of an embedding with a tied head that has a bias | a run leaves out the head’s bias | adds it, as PEFT’s merge does |
| \`ensure_weight_tying\` | a merge adds the change that both uses share twice | adds it once, as in a run that is not merged |
| \`init_lora_weights\`: pissa | decomposes the base in float32 each time it loads the adapter. If singular values are close to each other, weights differ by more than 1e-4 of the largest | decomposes in float64. The data of ✓ were made in float64 too |
| \`rank_pattern\`, \`alpha_pattern\` in which several keys match | saves the keys sorted. After loading, another key may come first and change scaling or shapes | keeps an order with the same meaning |
| \`fan_in_fan_out\` of models with Conv1D and Linear layers ([#324](https://github.com/huggingface/peft/issues/324)) | saves the value of the last adapted module. On loading, the module’s class decides | the shape of the base’s weight decides |
| \`bias="all"\` with \`modules_to_save\` | saves the biases of those modules twice, and the base’s biases too | reads such files, and writes each bias once |

## Notes

${[...notes].map(([message, number]) => `${number}. ${message}`).join('\n')}
`
}

function line(columns: readonly string[]): string {
  return `| ${columns.join(' | ')} |`
}

function exponent(value: number): string {
  return value.toExponential()
}
