// docs/conformance.md, written from a run of the matrix.

import { type CellResult, CHECKS, TOLERANCES } from './check.js'
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

<!-- Written by \`npm run conformance\`; a test fails when it is not what the suite gives. -->

Every architecture × every option: adapter folders that PEFT ${peft} saved (transformers ${transformers}, torch ${torch}), with ranks that differ by layer
and a B that is not zero, read by lowrank and compared with what PEFT counts, computes and merges after loading the same folder. The bases
have a few kB and random weights. [tests/conformance](../tests/conformance) runs it without Python; [scripts/golden/conformance.py](../scripts/golden/conformance.py) makes the data.

${results.size} cells: ${count('pass')} conform (✓), ${count('peft-refuses')} are refused by PEFT (P), ${count('lowrank-refuses')} by lowrank (L), ${count('fail')} fail (✗).

${line(['', ...Object.values(matrix.architectures)])}
${line(['---', ...Object.keys(matrix.architectures).map(() => ':---:')])}
${rows.map(line).join('\n')}

## What ✓ means

| check | compared | tolerance, relative to a tensor’s largest value |
| --- | --- | --- |
| counts | trained parameters, layers, kinds, ranks, alphas; scaling; norms of A, B and s·B·A | exact; 1e-15; 1e-9 |
| forward | each adapted module’s output in f32, not merged and merged | ${exponent(TOLERANCES.forward)} |
| merge | every tensor of the merged checkpoint in f32 | ${exponent(TOLERANCES.merge)}; bit for bit where PEFT changes nothing |
| bf16, f16 | the same, written in 16 bits | one rounding of a value within ${exponent(TOLERANCES.merge)} |
| file | the folder saved again | the same bytes; the config’s content |

The ${CHECKS.length} checks run in every cell; with a base and an adapter in 16 bits the merge is compared in that type. Where PEFT runs an adapter and cannot merge it,
lowrank must refuse to merge it too, and a note has PEFT’s message. Tied embeddings are merged as PEFT does it: with \`tied: 'keep'\`,
and with \`untie\` where one use has a saved copy.

## Where PEFT does something else

[tests/conformance/differences.test.ts](../tests/conformance/differences.test.ts) has both results of each.

| case | PEFT | lowrank |
| --- | --- | --- |
| merging into 16 bits with \`safe_merge\` ([#1388](https://github.com/huggingface/peft/issues/1388), [#2502](https://github.com/huggingface/peft/issues/2502)) | rounds s·B·A, then the sum | rounds once, as PEFT does without \`safe_merge\` |
| tied embeddings ([#2018](https://github.com/huggingface/peft/issues/2018), [#2777](https://github.com/huggingface/peft/issues/2777)) | a merge changes the other use as well, with a warning | refuses until \`tied\` says \`untie\`, which gives what was trained, or \`keep\`, which is PEFT’s result |
| \`ensure_weight_tying\` | a merge adds the change that both uses share twice | adds it once, which is what runs |
| \`layer_replication\` ([#1707](https://github.com/huggingface/peft/issues/1707)) | a merge adds the changes of all copies to the weight that they share | runs such adapters, and refuses to merge them |
| \`init_lora_weights\`: pissa | decomposes the base again in float32 whenever it loads the adapter: where singular values are near each other, weights are off by more than 1e-4 of the largest | decomposes in float64; the data of ✓ were made so, too |
| \`rank_pattern\`, \`alpha_pattern\` in which several keys match | saved sorted: loaded again, another key may come first, and scaling or shapes are others | written in an order that means the same |
| \`fan_in_fan_out\` of models with Conv1D and Linear layers ([#324](https://github.com/huggingface/peft/issues/324)) | saved as the last adapted module left it; on loading the module’s class counts | the shape of the base’s weight counts |
| \`bias="all"\` with \`modules_to_save\` | saves those modules’ biases twice, and the base’s besides | reads such files, and writes each bias once |

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
