// Commands that cannot work. Each prints one message that says what is wrong, exits with code 1, or with 2 for a wrong
// command line, and leaves no files behind.

import { copyFileSync, cpSync, existsSync, mkdirSync, readdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { describe, expect, it } from 'vitest'
import { lowrankHere } from './in-process.js'
import { MODEL, ONNX, type Outcome, QUICK, root, scratchFolder } from './lowrank.js'

const scratch = scratchFolder()
const golden = join(root, 'tests', 'golden')
const PEFT = join(golden, 'peft', 'f32')
const LFS = 'version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n'

/** A copy of the model folder, changed by `change`. */
function changedModel(name: string, change: (folder: string) => void): string {
  const folder = join(scratch, name)
  mkdirSync(join(folder, 'onnx'), { recursive: true })
  for (const file of ['config.json', 'tokenizer.json', 'tokenizer_config.json', 'generation_config.json']) {
    copyFileSync(join(MODEL, file), join(folder, file))
  }
  copyFileSync(ONNX, join(folder, 'onnx', 'model.onnx'))
  change(folder)
  return folder
}

function file(name: string, content: string | Uint8Array): string {
  writeFileSync(join(scratch, name), content)
  return join(scratch, name)
}

function pickledAdapter(): string {
  const folder = join(scratch, 'pickled')
  mkdirSync(folder, { recursive: true })
  copyFileSync(join(PEFT, 'adapter_config.json'), join(folder, 'adapter_config.json'))
  writeFileSync(join(folder, 'adapter_model.bin'), 'x')
  return folder
}

function damagedAdapter(): string {
  const folder = join(scratch, 'damaged')
  cpSync(PEFT, folder, { recursive: true })
  const weights = join(folder, 'adapter_model.safetensors')
  writeFileSync(weights, readFileSync(weights).subarray(0, -1000))
  return folder
}

/** Cases: the arguments after `lowrank train --out …`, what the message must say, and the exit code if it is not 1. */
const TRAIN: [what: string, args: () => string[], message: RegExp, code?: number][] = [
  ['a missing model', () => ['--model', join(scratch, 'nowhere')], /nowhere: no such file or folder/],
  ['an empty model folder', () => ['--model', golden], /no ONNX model/],
  [
    'a model with a broken config.json',
    () => ['--model', changedModel('no-config', (m) => writeFileSync(join(m, 'config.json'), '{'))],
    /config\.json: not valid JSON/,
  ],
  [
    'a model with a broken tokenizer.json',
    () => ['--model', changedModel('no-tokenizer', (m) => writeFileSync(join(m, 'tokenizer.json'), '[]'))],
    /tokenizer\.json/,
  ],
  [
    'a model without tokenizer.json',
    () => ['--model', changedModel('bare', (m) => rmSync(join(m, 'tokenizer.json')))],
    /no tokenizer\.json/,
  ],
  [
    'an .onnx that is no ONNX',
    () => ['--model', changedModel('no-onnx', (m) => writeFileSync(join(m, 'onnx', 'model.onnx'), 'hello there'))],
    /model\.onnx: .*ONNX/,
  ],
  ['missing data', () => ['--data', join(scratch, 'nothing.jsonl')], /nothing\.jsonl: no such file/],
  ['data that is a folder', () => ['--data', MODEL], /union-3m: this folder holds a model/],
  ['data with a broken line', () => ['--data', file('broken.jsonl', '{"text": "a b c"}\n{"text": \n')], /line 2/],
  ['empty data', () => ['--data', file('empty.jsonl', '\n\n')], /empty\.jsonl: it holds no records/],
  ['records without fields', () => ['--data', file('fields.jsonl', '{"txt": "a"}')], /line 1: .*"?text/],
  ['missing evaluation data', () => ['--eval-data', join(scratch, 'nothing.jsonl')], /nothing\.jsonl: no such file/],
  ['a length above the context', () => ['--max-length', '257'], /--max-length: .*at most 256, got 257/, 2],
  ['targets that match nothing', () => ['--target-modules', 'q_prj,v_proj'], /--target-modules: .*q_prj.*q_proj/],
  ['an empty target', () => ['--target-modules', 'q_proj,'], /--target-modules takes .*; got 'q_proj,'/, 2],
  ['rank 0', () => ['--rank', '0'], /--rank: not valid; expected an integer of at least 1, got 0/, 2],
  ['a negative rank', () => ['--rank', '-4'], /--rank: not valid; expected an integer of at least 1, got -4/, 2],
  [
    'a rank that is no integer',
    () => ['--rank', '2.5'],
    /--rank: not valid; expected an integer of at least 1, got 2\.5/,
    2,
  ],
  [
    'a rank that is no number',
    () => ['--rank', 'eight'],
    /--rank takes a number, such as 8, 0\.5 or 1e-3; got 'eight'/,
    2,
  ],
  ['a rank above a layer', () => ['--rank', '65'], /model\.layers\.\d\.self_attn\.k_proj: .*at most 64, got 65/],
  ['alpha 0', () => ['--alpha', '0'], /--alpha: .*got 0/, 2],
  ['dropout 1', () => ['--dropout', '1'], /--dropout: .*got 1/, 2],
  ['a negative learning rate', () => ['--learning-rate', '-1e-3'], /--learning-rate: .*got -0\.001/, 2],
  ['a huge learning rate', () => ['--learning-rate', '1e3'], /--learning-rate: .*got 1000/, 2],
  ['a warm-up above 1', () => ['--warmup-ratio', '1.5'], /--warmup-ratio: .*got 1\.5/, 2],
  [
    'an unknown task',
    () => ['--task', 'classification'],
    /--task: unknown; expected causal-lm, .*got "classification".*ean text-classification\?/,
    2,
  ],
  ['zero steps', () => ['--max-steps', '0'], /--max-steps: not valid; expected an integer of at least 1, got 0/, 2],
  ['nothing to resume', () => ['--resume'], /no unfinished run/],
  ['an archive named as a table', () => ['--data', file('zip.csv', 'PK\x03\x04')], /zip\.csv: not records but a/],
  [
    'records that Git LFS keeps',
    () => ['--data', file('lfs.jsonl', LFS)],
    /lfs\.jsonl: not records but a pointer of Git LFS/,
  ],
  ['Parquet that Git LFS keeps', () => ['--data', file('lfs.parquet', LFS)], /lfs\.parquet: .*pointer of Git LFS/],
  ['records of a page that was not found', () => ['--data', file('404.json', '<!DOCTYPE html>')], /page of HTML/],
  [
    'a tokenizer that Git LFS keeps',
    () => ['--model', changedModel('lfs-tokenizer', (m) => writeFileSync(join(m, 'tokenizer.json'), LFS))],
    /tokenizer\.json: not JSON but a pointer of Git LFS\. Fetch the file itself/,
  ],
  [
    'a config that is a page',
    () => ['--model', changedModel('page', (m) => writeFileSync(join(m, 'config.json'), '<html>'))],
    /config\.json: not JSON but a page of HTML/,
  ],
  ['more threads than machines have', () => ['--threads', '2000'], /--threads: .*\[1, 1024\], got 2000/, 2],
  [
    'pairs whose answers are the same',
    () => ['--task', 'dpo', '--data', file('same.jsonl', '{"prompt":"a ","chosen":"b c","rejected":"b c"}')],
    /no record has a token to learn from.*two answers that are the same/,
  ],
  ['a file of options that is a folder', () => ['--config', scratch], /is a folder/],
]

function expectRefusal({ code, stdout, stderr }: Outcome, message: RegExp, expected = 1) {
  const errors = stderr.split('\n').filter((line) => line.startsWith('error: '))
  expect(errors, stderr).toHaveLength(1)
  expect(errors[0]).toMatch(message)
  expect(stderr).not.toMatch(/^\s+at /m)
  expect(stdout).toBe('')
  expect(code).toBe(expected)
}

describe('lowrank train refuses', () => {
  it.each(TRAIN)('%s', async (what, args, message, code) => {
    const out = join(scratch, `out ${what}`)
    const given = args()
    const defaults = pairs(QUICK).filter(([flag]) => !given.includes(flag))
    expectRefusal(await lowrankHere('train', ...defaults.flat(), '--out', out, ...given), message, code)
    expect(existsSync(out)).toBe(false)
  })

  it('an output folder that is not empty, and leaves it alone', async () => {
    const out = join(scratch, 'notes')
    mkdirSync(out)
    writeFileSync(join(out, 'notes.txt'), 'mine')
    expectRefusal(
      await lowrankHere('train', ...QUICK, '--out', out),
      /notes: the output folder is not empty; got notes\.txt/,
    )
    expectRefusal(
      await lowrankHere('train', ...QUICK, '--out', out, '--overwrite'),
      /lowrank did not write this folder/,
    )
    expect(readdirSync(out)).toEqual(['notes.txt'])
    expect(readFileSync(join(out, 'notes.txt'), 'utf8')).toBe('mine')
  })

  it('an output that is a file', async () => {
    expectRefusal(await lowrankHere('train', ...QUICK, '--out', file('a-file', 'mine')), /a-file/)
    expect(readFileSync(join(scratch, 'a-file'), 'utf8')).toBe('mine')
  })

  it('to go on with a loss that is not a number: names the step and keeps the last good adapter', async () => {
    const out = join(scratch, 'not-a-number')
    const explosive = ['--alpha', '1e30', '--learning-rate', '10', '--max-grad-norm', '0', '--warmup-ratio', '0']
    expectRefusal(
      await lowrankHere('train', ...QUICK, ...explosive, '--out', out),
      /step 2: the loss is .*last good adapter/,
    )
    const { code, stdout } = await lowrankHere('inspect', out, '--json')
    expect(code).toBe(0)
    expect(JSON.parse(stdout).layers).toHaveLength(42)
  })
})

function pairs(args: readonly string[]): string[][] {
  return args.flatMap((flag, i) => (flag.startsWith('--') ? [[flag, args[i + 1]]] : []))
}

/** An adapter for a model with other sizes. */
const FOREIGN = join(golden, 'models', 'llama-dynamo', 'golden', 'adapter-init')

const OTHERS: [what: string, args: (out: string) => string[], message: RegExp, code?: number][] = [
  [
    'merge: a missing adapter',
    (out) => ['merge', '--base', ONNX, '--adapter', golden, '--out', out],
    /no adapter_config/,
  ],
  [
    'merge: a foreign adapter',
    (out) => ['merge', '--base', ONNX, '--adapter', FOREIGN, '--out', out],
    /_proj: .*another shape/,
  ],
  [
    'merge: a foreign adapter, into a checkpoint',
    (out) => ['merge', '--base', MODEL, '--adapter', FOREIGN, '--out', out],
    /model\.layers\.0\..*_proj/,
  ],
  [
    'merge: a corrupt adapter',
    (out) => ['merge', '--base', ONNX, '--adapter', damagedAdapter(), '--out', out],
    /adapter_model\.safetensors/,
  ],
  [
    'merge: a pickled adapter',
    (out) => ['merge', '--base', ONNX, '--adapter', pickledAdapter(), '--out', out],
    /pickled\/adapter_model\.bin: a pickle, .* is never read; .*Convert it in Python, .*: import torch.*torch\.load/,
  ],
  [
    'generate: a pickled adapter',
    () => ['generate', '--model', MODEL, '--adapter', pickledAdapter(), '--prompt', 'a'],
    /pickled\/adapter_model\.bin: a pickle/,
  ],
  [
    'inspect: a pointer of Git LFS',
    () => ['inspect', file('pointer.safetensors', 'version https://git-lfs.github.com/spec/v1\noid sha256:0')],
    /pointer\.safetensors: not a safetensors file but a pointer of Git LFS\. Fetch the file itself/,
  ],
  [
    'merge: a damaged GGUF file as base',
    (out) => ['merge', '--base', file('model.gguf', 'GGUF\x03\0\0\0'), '--adapter', PEFT, '--out', out],
    /model\.gguf: the file ends within its header; got 8 bytes/,
  ],
  [
    'merge: a folder of GGUF files as base',
    (out) => {
      mkdirSync(join(scratch, 'gguf'), { recursive: true })
      file('gguf/a.gguf', 'GGUF\x03\0\0\0')
      return ['merge', '--base', join(scratch, 'gguf'), '--adapter', PEFT, '--out', out]
    },
    /no checkpoint in this folder; expected model\.safetensors .*, got a\.gguf\. Only safetensors/,
  ],
  [
    'merge: a model where the adapter should be',
    (out) => ['merge', '--base', MODEL, '--adapter', MODEL, '--out', out],
    /this is a model: use --base/,
    2,
  ],
  [
    "merge: the adapter's file in place of its folder",
    (out) => ['merge', '--base', MODEL, '--adapter', join(PEFT, 'adapter_model.safetensors'), '--out', out],
    /adapter_model\.safetensors: a file, and not a folder/,
  ],
  [
    'generate: a checkpoint without an ONNX model',
    () => ['generate', '--model', join(golden, 'merge', 'llama', 'base'), '--prompt', 'a'],
    /no ONNX model in this folder; .* can be merged, but not run/,
  ],
  [
    'generate: a safetensors file',
    () => ['generate', '--model', join(MODEL, 'model.safetensors'), '--prompt', 'a'],
    /model\.safetensors: not a model that can be run; expected a model folder or its \.onnx file/,
  ],
  [
    'merge: a corrupt checkpoint',
    (out) => ['merge', '--base', file('bad.safetensors', 'nonsense'), '--adapter', PEFT, '--out', out],
    /bad\.safetensors/,
  ],
  [
    'merge: a base that is no ONNX',
    (out) => ['merge', '--base', file('bad.onnx', 'nonsense'), '--adapter', PEFT, '--out', out],
    /bad\.onnx: .*ONNX/,
  ],
  [
    'merge: one file of a sharded base',
    (out) => {
      const header = '{"norm.weight":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}'
      const shard = file(
        'model-00001-of-00002.safetensors',
        `${String.fromCharCode(header.length)}${'\0'.repeat(7)}${header}0000`,
      )
      return ['merge', '--base', shard, '--adapter', PEFT, '--out', out]
    },
    /--adapter: none of its layers is in the base: .*The base is one of several files: give their folder/,
  ],
  [
    'merge: a checkpoint into an .onnx file',
    () => ['merge', '--base', join(MODEL, 'model.safetensors'), '--adapter', PEFT, '--out', join(scratch, 'x.onnx')],
    /x\.onnx: the result cannot be written as \.onnx; expected a folder, or a file name that ends in \.safetensors/,
  ],
  [
    'merge: an ONNX model into a .safetensors file, in a dry run',
    () => ['merge', '--base', ONNX, '--adapter', PEFT, '--out', join(scratch, 'x.safetensors'), '--dry-run'],
    /x\.safetensors: the result cannot be written as \.safetensors; expected a folder, or a file name that ends in \.onnx/,
  ],
  [
    'merge: an adapter with a weight of 0 into ONNX',
    (out) => ['merge', '--base', ONNX, '--adapter', PEFT, '--weight', '0', '--out', out],
    /weight of adapter 1: not valid/,
  ],
  [
    'generate: a missing model',
    () => ['generate', '--model', join(scratch, 'no'), '--prompt', 'a'],
    /no such file or folder/,
  ],
  [
    'generate: a foreign adapter',
    () => ['generate', '--model', MODEL, '--adapter', FOREIGN, '--prompt', 'a'],
    /model\.layers\.0\..*_proj/,
  ],
  ...['[null]', '[[]]', '{"messages": []}', '7'].map((chat, i): (typeof OTHERS)[number] => [
    `generate: ${chat} as a chat`,
    () => ['generate', '--model', MODEL, '--messages', file(`chat-${i}.json`, chat)],
    /chat-\d\.json: not a chat; expected JSON/,
  ]),
  [
    'generate: a temperature below 0',
    () => ['generate', '--model', MODEL, '--prompt', 'a', '--temperature', '-1'],
    /--temperature/,
    2,
  ],
  [
    'generate: top-p of 2',
    () => ['generate', '--model', MODEL, '--prompt', 'a', '--top-p', '2'],
    /--top-p: .*got 2/,
    2,
  ],
  [
    'merge: an adapter that is not there',
    (out) => ['merge', '--base', MODEL, '--adapter', join(scratch, 'nowhere'), '--out', out],
    /nowhere: no such file or folder/,
  ],
  [
    'merge: an adapter as its own base',
    (out) => ['merge', '--base', PEFT, '--adapter', PEFT, '--out', out],
    /this is an adapter: use --adapter/,
    2,
  ],
  [
    'merge: a pickle named as base',
    (out) => ['merge', '--base', file('pytorch_model.bin', 'x'), '--adapter', PEFT, '--out', out],
    /pytorch_model\.bin: a pickle, .* is never read/,
  ],
  [
    'merge: an adapter named by its file',
    (out) => ['merge', '--base', MODEL, '--adapter', join(PEFT, 'adapter_model.safetensors'), '--out', out],
    /adapter_model\.safetensors: a file, and not a folder/,
  ],
  ['inspect: a pickle', () => ['inspect', file('model.pt', 'x')], /model\.pt: a pickle/],
  [
    'inspect: a folder of neither',
    () => ['inspect', join(root, 'models')],
    /models: neither an adapter nor a model; expected/,
  ],
  ['inspect: nothing', () => ['inspect', join(scratch, 'nowhere')], /nowhere: no such file or folder/],
  ['inspect: a corrupt file', () => ['inspect', file('cut.safetensors', new Uint8Array(3))], /cut\.safetensors/],
  ['inspect: another kind of adapter', () => ['inspect', join(golden, 'peft', 'ia3')], /peft_type.*IA3/],
]

describe('the other commands refuse', () => {
  it.each(OTHERS)('%s', async (what, args, message, code) => {
    const out = join(scratch, `out ${what}`)
    expectRefusal(await lowrankHere(...args(out)), message, code)
    expect(readdirSync(scratch).filter((name) => name.startsWith(`out ${what}`))).toEqual([])
  })

  it('merging over the base itself', async () => {
    const base = join(scratch, 'base.onnx')
    copyFileSync(ONNX, base)
    expectRefusal(
      await lowrankHere('merge', '--base', base, '--adapter', PEFT, '--out', base, '--overwrite'),
      /base\.onnx/,
    )
    expect(readFileSync(base).equals(readFileSync(ONNX))).toBe(true)
  })
})

describe('wrong usage', () => {
  it.each<[string[], RegExp]>([
    [['train'], /--model DIR\|FILE\|ID is missing/],
    [
      ['train', ...QUICK, '--out', 'x', '--lerning-rate', '1'],
      /no option --lerning-rate; did you mean --learning-rate\?/,
    ],
    [
      ['merge', '--base', 'a', '--adapter', 'b', '--out', 'x', '--shard', '2/2'],
      /no option --shard\. One process writes the whole result, in seconds for some GB: leave it out/,
    ],
    [
      ['merge', '--base', 'a', '--adapter', 'b', '--out', 'x', '--resume'],
      /no option --resume\. Give the same command again: it starts anew/,
    ],
    [
      ['merge', '--base', 'a', '--adapter', 'b', '--out', 'x', '--fsync'],
      /no option --fsync\. Results are always on the disk before they have their names: leave it out/,
    ],
    [['merge', '--base', MODEL, '--adapter', PEFT, '--out', ''], /--out is empty/],
    [
      ['merge', '--base', 'a', '--adapter', 'b', '--out', 'x', '--max-shard-size', '0'],
      /--max-shard-size is a size such as 5GB; got '0'/,
    ],
    [['train', ...QUICK, '--out', 'x', '--schedule', 'step'], /--schedule is one of cosine, linear, constant/],
    [['train', ...QUICK, '--out', 'x', '--resume', '--overwrite'], /cannot be used together/],
    [['merge', '--base', MODEL, '--out', 'x'], /--adapter DIR\|ID is missing/],
    [['merge', '--base', MODEL, '--weight', '1', '--adapter', PEFT, '--out', 'x'], /--weight W comes after/],
    [['generate', '--model', MODEL], /--prompt TEXT is missing/],
    [['inspect'], /--source DIR\|FILE\|ID is missing/],
    [['inspekt', 'x'], /did you mean inspect\?/],
    [['--model', 'x'], /the command comes first/],
  ])('%j exits with 2', async (args, message) => {
    const { code, stdout, stderr } = await lowrankHere(...args)
    expect(stderr).toMatch(message)
    expect(stderr).toContain('--help')
    expect(stdout).toBe('')
    expect(code).toBe(2)
  })

  it('says what to do without a command', async () => {
    const { code, stdout, stderr } = await lowrankHere()
    expect([code, stderr]).toEqual([0, ''])
    expect(stdout).toContain('lowrank train')
  })
})
