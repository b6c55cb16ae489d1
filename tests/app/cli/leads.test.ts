// Words from other tools on the command line: the error suggests the right command or option, and never a wrong one.

import { describe, expect, it } from 'vitest'
import { evaluate, train } from '../../../src/api/node.js'
import { parseCommand } from '../../../src/app/cli/options.js'
import { COMMANDS, run } from '../../../src/app/cli/program.js'

/** Returns the error message for a command, or for an option of a command. */
async function messageFor(words: string): Promise<string> {
  const [name, flag] = words.split(' ')
  try {
    if (flag === undefined) await run([name])
    else parseCommand(await COMMANDS[name](), [flag, 'x'])
  } catch (error) {
    return (error as Error).message
  }
  return 'accepted'
}

/** Options that users of other tools tried, and that lowrank does not have. */
const KNOWN: readonly [words: string, leads: RegExp][] = [
  ['eval', /mean evaluate\?/],
  ['upload', /mean push\?/],
  ['sft', /lowrank train/],
  ['dpo', /--task dpo/],
  ['validate', /lowrank data/],
  ['check', /lowrank data/],
  ['test', /lowrank evaluate/],
  ['list', /lowrank inspect/],
  ['ls', /lowrank inspect/],
  ['compare', /lowrank diff.*lowrank evaluate/],
  ['export', /lowrank merge.*lowrank convert/],
  ['pull', /loads when a command names it/],
  ['rm', /hf cache rm/],
  ['train --batch', /mean --batch-size\?/],
  ['train --qlora', /--dtype q4/],
  ['train --quantize', /--dtype q4/],
  ['train --bf16', /--dtype fp16/],
  ['train --fp16', /--dtype fp16/],
  ['merge --bf16', /--out-dtype/],
  ['train --gpu', /--device webgpu/],
  ['generate --cpu', /--device cpu/],
  ['train --beta', /--task-options beta=0\.1/],
  ['train --loss-type', /--task dpo or kto/],
  ['train --text-field', /--columns text=NAME/],
  ['train --label-column', /--columns label=NAME/],
  ['train --fine-tune-type', /--use-dora/],
  ['train --push-to-hub', /lowrank push/],
  ['train --dry-run', /lowrank data/],
  ['train --mask-prompt', /always on/],
  ['train --assistant-only-loss', /always on/],
  ['train --warmup_steps', /mean --warmup-steps\?/],
  ['train --lora-layers', /mean --num-layers\?/],
  ['merge --dequantize', /quantized weights stay.*--dtype fp32/],
  // Axolotl, LLaMA-Factory and vLLM
  ['preprocess', /mean data\?/],
  ['inference', /mean generate\?/],
  ['webui', /lowrank serve MODEL has a page/],
  ['api', /mean serve\?/],
  ['train --micro_batch_size', /mean --batch-size\?/],
  ['train --cutoff_len', /mean --max-length\?/],
  ['train --val_set_size', /mean --eval-split\?/],
  ['merge --export_dir', /mean --out\?/],
  ['merge --export_size', /mean --max-shard-size\?/],
  ['serve --lora-modules', /mean --adapter\?/],
  ['serve --enable-lora', /always on/],
  ['serve --max-loras', /mean --max-adapters\?/],
  ['serve --max-num-seqs', /mean --max-running\?/],
  ['serve --max-model-len', /the model's own; --max-tokens/],
  ['serve --num-ctx', /the model's own; --max-tokens/],
  ['serve --tensor-parallel-size', /behind a load balancer/],
]

/**
 * Words that users of other tools may try, from the lists of TrainingArguments and TRL's configs, and of the commands
 * and options of mlx-lm and ollama. Errors must lead on for nearly all of them.
 */
const BLIND: readonly [words: string, leads: RegExp][] = [
  // ollama
  ['run', /mean generate\?/],
  ['show', /mean inspect\?/],
  ['ps', /\/v1\/models/],
  ['cp', /ordinary folders/],
  ['create', /Modelfile/],
  ['stop', /Ctrl-C/],
  ['signin', /HF_TOKEN/],
  ['launch', /lowrank serve/],
  ['chat --think', /enable_thinking/],
  ['chat --keepalive', /nothing/],
  ['chat --verbose', /nothing/],
  ['generate --num-ctx', /context/],
  ['generate --num-predict', /mean --max-new-tokens\?/],
  ['generate --repeat-penalty', /mean --repetition-penalty\?/],
  // mlx-lm
  ['fuse', /mean merge\?/],
  ['server', /mean serve\?/],
  ['perplexity', /mean evaluate\?/],
  ['cache_prompt', /--prefix-cache/],
  ['awq', /--dtype q4/],
  ['manage', /hf cache ls/],
  ['benchmark', /nothing/],
  ['train --iters', /mean --max-steps\?/],
  ['train --val-batches', /--eval-data/],
  ['train --steps-per-eval', /mean --eval-every\?/],
  ['train --steps-per-report', /metrics\.jsonl/],
  ['train --grad-checkpoint', /mean --(low-memory|memory)\?/],
  ['train --resume-adapter-file', /mean --adapter\?/],
  ['train --max-seq-length', /mean --max-length\?/],
  ['train --optimizer', /AdamW/],
  ['train --wandb', /metrics\.jsonl/],
  ['train --tensorboard', /report\.html/],
  ['merge --save-path', /mean --out\?/],
  ['merge --upload-repo', /lowrank push/],
  ['merge --export-gguf', /--to gguf/],
  ['generate --extra-eos-token', /mean --stop\?/],
  ['generate --ignore-chat-template', /--raw/],
  ['generate --draft-model', /leave it out/],
  ['serve --allowed-origins', /mean --origin\?/],
  ['serve --prompt-cache-size', /mean --prefix-cache\?/],
  // TRL
  ['grpo', /--task grpo --rewards/],
  ['kto', /--task kto/],
  ['vllm-serve', /mean serve\?/],
  ['train --dataset_name', /--data/],
  ['train --dataset_text_field', /--columns/],
  ['train --lora_r', /mean --rank\?/],
  ['train --lora_target_modules', /mean --target-modules\?/],
  ['train --load_in_4bit', /--dtype q4/],
  ['train --use_peft', /leave it out/],
  ['train --completion_only_loss', /always on/],
  ['train --model_revision', /owner\/name@revision/],
  ['train --attn_implementation', /leave it out/],
  ['train --precompute_ref_log_probs', /nothing/],
  // transformers
  ['download', /loads when/],
  ['env', /--version/],
  ['train --num_train_epochs', /mean --epochs\?/],
  ['train --per_device_train_batch_size', /mean --batch-size\?/],
  ['train --lr_scheduler_type', /mean --schedule\?/],
  ['train --save_total_limit', /--save-every/],
  ['train --eval_strategy', /--eval-every/],
  ['train --dataloader_num_workers', /leave it out/],
  ['train --deepspeed', /lowrank handoff/],
  ['train --neftune_noise_alpha', /--dropout/],
  ['train --output_dir', /mean --out\?/],
  ['train --fp16_full_eval', /--dtype fp16/],
]

/** Written before the leads for them, by someone who uses transformers, TRL, mlx-lm and ollama. */
const FURTHER: readonly [words: string, leads: RegExp][] = [
  ['train --per_device_eval_batch_size', /mean --batch-size\?/],
  ['train --gradient_accumulation_steps', /mean --gradient-accumulation\?/],
  ['train --logging_steps', /metrics\.jsonl/],
  ['train --save_steps', /mean --save-every\?/],
  ['train --eval_steps', /mean --eval-every\?/],
  ['train --save_strategy', /--save-every/],
  ['train --load_best_model_at_end', /mean --keep\?/],
  ['train --metric_for_best_model', /mean --best-metric\?/],
  ['train --greater_is_better', /--best-metric/],
  ['train --report_to', /metrics\.jsonl/],
  ['train --run_name', /its --out/],
  ['train --optim', /AdamW/],
  ['train --adam_beta1', /0\.9, 0\.999/],
  ['train --adam_epsilon', /1e-8/],
  ['train --group_by_length', /--packing/],
  ['train --resume_from_checkpoint', /mean --resume\?/],
  ['train --hub_model_id', /lowrank push/],
  ['train --torch_compile', /leave it out/],
  ['train --remove_unused_columns', /leave it out/],
  ['train --label_smoothing_factor', /labelSmoothing/],
  ['train --overwrite_output_dir', /mean --overwrite\?/],
  ['train --max_eval_samples', /head -n/],
  ['train --preprocessing_num_workers', /leave it out/],
  ['train --trust_remote_code', /leave it out/],
  ['train --use_fast_tokenizer', /tokenizer\.json/],
  ['train --cache_dir', /HF_HOME/],
  ['train --train_file', /mean --data\?/],
  ['train --max_completion_length', /--task-options/],
  ['train --num_generations', /numGenerations/],
  ['train --reward_funcs', /--rewards/],
  ['train --packing_strategy', /--packing/],
  ['train --padding_free', /--packing/],
  ['train --eos_token', /tokenizer\.json/],
  ['train --chat_template_path', /mean --chat-template\?/],
  ['train --desirable_weight', /desirableWeight/],
  ['train --lora_bias', /nothing/],
  ['train --logging_dir', /metrics\.jsonl/],
  ['train --disable_tqdm', /nothing/],
  ['lora', /mean train\?/],
  ['finetune', /mean train\?/],
  ['search', /huggingface\.co/],
  ['convert --hf-path', /name the model/],
  ['merge --hf-path', /name the model/],
  ['generate --temp', /mean --temperature\?/],
  ['generate --max-tokens', /mean --max-new-tokens\?/],
  ['generate --system-prompt', /mean --system\?/],
  ['chat --system-prompt', /mean --system\?/],
  ['generate --adapter-path', /mean --adapter\?/],
  ['generate --xtc-probability', /--min-p/],
  ['generate --max-kv-size', /--max-new-tokens/],
  ['generate --num-beams', /no beam search/],
  ['generate --verbose', /nothing/],
  ['evaluate --tasks', /lm_eval/],
  ['evaluate --num-shots', /lm_eval/],
  ['evaluate --limit', /head -n/],
  ['serve --log-level', /--log json/],
  ['serve --num-parallel', /--max-running/],
  ['serve --host-ip', /nothing/],
  ['chat --format', /nothing/],
  ['chat --nowordwrap', /nothing/],
  ['push --private', /--public/],
  ['embed --truncate', /--max-length/],
]

describe('words of other tools', () => {
  it.each(KNOWN)('%s', async (words, leads) => expect(await messageFor(words)).toMatch(leads))

  it.each([
    ['from lists', BLIND],
    ['from memory', FURTHER],
  ])('lead on for nearly all further guesses %s, and none to something else', async (_, guesses) => {
    const answers = await Promise.all(
      guesses.map(async ([words, leads]) => ({ words, leads, says: await messageFor(words) })),
    )
    const missed = answers.filter(({ says, leads }) => !leads.test(says))
    expect(guesses.length).toBeGreaterThanOrEqual(60)
    expect(guesses.length - missed.length).toBeGreaterThanOrEqual(53)
    // Messages without a guess may list all names, but must not suggest a wrong one.
    expect(missed.filter(({ says }) => !/^there is no (option \S+|command '\S+'; there are .*)$/.test(says))).toEqual(
      [],
    )
  })

  it.each(['--version', '-v', '-V', 'version'])('%s says the version', async (word) => {
    expect(await messageFor(word)).toBe('accepted')
  })
})

it.each<[words: string, meant: string]>([
  ['train --model m --data a.jsonl b.jsonl --out o', '--data b.jsonl'],
  ['train --model m a.jsonl', '--data a.jsonl'],
  ['train --model m --data a.jsonl --json o', '--out o'],
  ['train --model m --target-modules q_proj v_proj', '--target-modules q_proj,v_proj'],
  ['train --target-modules q v --model m', '--target-modules q,v'],
  ['train --data a.jsonl --target-modules q v', '--target-modules q,v'],
  ['train --columns prompt=a completion=b --model m', '--columns prompt=a,completion=b'],
  ['train --model m --columns prompt=a completion=b', '--columns prompt=a,completion=b'],
  ['merge base.safetensors --adapter a --adapter b c', '--adapter c'],
])('an argument too many: %s', async (words, meant) => {
  const [name, ...args] = words.split(' ')
  const command = await COMMANDS[name]()
  expect(() => parseCommand(command, args)).toThrow(`did you mean ${meant}?`)
})

it.each(['models/union-3m', 'org/name', 'package.json'])('takes %s after a list as the model', async (model) => {
  const { values } = parseCommand(await COMMANDS.train(), ['--target-modules', 'q', model, '--data', 'a', '--out', 'o'])
  expect(values).toMatchObject({ model, targetModules: ['q'] })
})

it('leads from all_linear, a task of TRL and reversed columns to what is meant', async () => {
  const given = { model: 'models/union-3m', data: [{ text: 'A boat.' }], on: {} }
  const config = { targetModules: ['all_linear'] }
  await expect(train({ ...given, config })).rejects.toThrow(/Did you mean all-linear\?/)
  await expect(train({ ...given, task: 'sft' as never })).rejects.toThrow(/causal-lm, .*grpo, distill/)
  await expect(evaluate({ ...given, task: 'grpo' as never })).rejects.toThrow(/grpo learns from texts of its own/)
  const data = [{ question: 'Who?', answer: 'A captain.' }]
  const columns = { question: 'prompt', answer: 'completion' }
  await expect(train({ ...given, data, columns })).rejects.toThrow(/columns: \{ prompt: 'question' \}/)
})
