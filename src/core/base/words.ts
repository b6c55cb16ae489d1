// Words of other tools and of earlier versions that lowrank does not have: what they are called here, or what to do
// instead. A word may also be a misspelled name.

import { editDistance } from './errors.js'

/**
 * Words | place | sentence. Without a sentence, the word means the place: an option or a value (`rank`), or a command
 * (`lowrank train`). With a sentence, the place says when the sentence helps: `lowrank` instead of a command, `--data`
 * in commands with that option, `--` in every command, `init` for a value of that option and beside it, also in code,
 * and `*` everywhere.
 */
const ROWS = `
base base_model model_name_or_path | model
adapters adaptor adapter_name adapter_path adapter_model lora lora_modules lora_request | adapter
adaptor adapter_path lora lora_modules | adapters
output_dir save_path export_dir adapter_path | out
train_file dataset | data
val_set_size | evalSplit
r lora_r | rank
lora_alpha | alpha
lora_target_modules | targetModules
lora_layers | numLayers
num_train_epochs | epochs
iters | maxSteps
batch micro_batch_size per_device_train_batch_size per_device_eval_batch_size | batchSize
gradient_accumulation_steps | gradientAccumulation
max_seq_length cutoff_len | maxLength
lr | learningRate
lr_scheduler_type | schedule
wd | weightDecay
low_memory fast grad_checkpoint | memory
save_steps | saveEvery
eval_steps steps_per_eval | evalEvery
load_best_model_at_end | keep
metric_for_best_model | bestMetric
resume_from_checkpoint | resume
overwrite_output_dir | overwrite
chat_template_path | chatTemplate
peft_config lora_config | config
reward_funcs | rewards
response_format json_schema grammar | schema
load_in_4bit | dtype
export_size | maxShardSize
max_tokens num_predict max_length | maxNewTokens
system_prompt | system
temp | temperature
extra_eos_token | stop
repeat_penalty | repetitionPenalty
max_loras | maxAdapters
max_num_seqs | maxRunning
gpu | webgpu
finetune lora | lowrank train
eval perplexity | lowrank evaluate
upload | lowrank push
server vllm-serve api | lowrank serve
preprocess | lowrank data
fuse | lowrank merge
inference run | lowrank generate
info show | lowrank inspect
validate check | lowrank | lowrank data checks records, lowrank inspect an adapter or a model
test | lowrank | lowrank evaluate measures an adapter, lowrank data checks records
sft | lowrank | lowrank train learns from texts and chats
dpo kto | lowrank | lowrank train --task dpo learns from pairs of answers, --task kto from a thumb up or down
grpo | lowrank | lowrank train --task grpo --rewards FILE learns from functions that judge texts
search | lowrank | models and adapters of the Hub are found at https://huggingface.co/models
list ls manage | lowrank | lowrank inspect DIR shows a model or an adapter; the Hub's are in its cache: hf cache ls
ps | lowrank | a running lowrank serve lists its models at /v1/models
cache_prompt | lowrank | lowrank serve keeps what it has read: --prefix-cache
webui | lowrank | lowrank serve MODEL has a page: open its address in a browser
compare | lowrank | lowrank diff compares the weights of adapters, lowrank evaluate their answers
export | lowrank | lowrank merge writes a model, lowrank convert an adapter for llama.cpp or mlx-lm
pull download rm cp | lowrank | a model of the Hub loads when a command names it, such as lowrank chat owner/name; hf cache rm deletes it. Adapters are ordinary folders
create | lowrank | lowrank convert ADAPTER --to gguf --out adapter.gguf writes a file that a Modelfile names: FROM the model, ADAPTER ./adapter.gguf
extract extract-lora | lowrank | mergekit-extract-lora makes a small adapter from two checkpoints
signin | lowrank | the Hub takes HF_TOKEN, or the login of hf auth login
lora-inputs | lowrank | sessions of lowrank run any adapter on a graph as it is: lowrank generate, lowrank serve
awq | lowrank | models are quantized when they are exported; --dtype q4 opens such a graph
qlora quantize load_in_4bit | --dtype | --dtype q4 opens a quantized graph, whose weights stay quantized, as in QLoRA
bf16 fp16 | --outDtype | --out-dtype fp16 or bf16 is the type that is written
bf16 fp16 fp16_full_eval | --dtype | --dtype fp16 opens a graph in half precision and computes in it, if the model has one
gpu | --device | say --device webgpu, or --device cuda
cpu | --device | say --device cpu, the default
deepspeed | --gradientAccumulation | a run has one device; lowrank handoff RUN --to trl goes on with it on several GPUs
beta label_smoothing_factor desirable_weight | --taskOptions | --task-options beta=0.1,labelSmoothing=0.1 for --task dpo; --task kto has desirableWeight
loss_type | --taskOptions | a task has its loss: --task dpo or kto; for embedding --task-options loss=cosine
text_field dataset_text_field label_column | --columns | --columns text=NAME and --columns label=NAME name your fields
dataset_name | --data | download it (hf download --repo-type dataset owner/name), and name its files with --data
fine_tune_type | --useDora | train makes LoRA, and with --use-dora DoRA; it does not train whole models
num_generations max_completion_length reward_funcs | --rewards | --task grpo --rewards FILE --task-options numGenerations=8
use_peft | --useDora | leave it out: train makes a LoRA adapter
val_batches | --evalData | leave it out: all records of --eval-data are measured
mask_prompt assistant_only_loss completion_only_loss | --maxLength | leave it out: it is always on, except for {"text"}
push_to_hub hub_model_id upload_repo | --out | afterwards, lowrank push DIR owner/name sends the adapter to the Hub
max_eval_samples limit | --data | write the records that you want into a file: head -n 100 data.jsonl > some.jsonl
use_fast_tokenizer eos_token | -- | leave it out: tokenizer.json and the model's configs say it
private | --public | leave it out: new repositories are private; --public makes a public one
log_level | --log | --log json or text prints a line for each request; --quiet prints less
tasks num_shots | --resamples | evaluate measures your own records; for benchmarks, merge the adapter and run lm_eval
hf_path | -- | name the model itself: a folder, or owner/name of the Hub
cache_dir | -- | set HF_HOME: the cache is Python's
model_revision | -- | write it after the id: owner/name@revision
trust_remote_code | -- | leave it out: no code of a model is run
dry_run | --maxSteps | lowrank data checks the records without training; --max-steps 1 takes one step
optim optimizer adam_beta1 adam_epsilon | weightDecay | leave it out: the optimizer is AdamW with 0.9, 0.999 and 1e-8
logging_steps steps_per_report report_to wandb logging_dir | --maxSteps | every step is in metrics.jsonl of the run
tensorboard run_name | --maxSteps | the curves of a run are in its report.html; its name is its --out
save_strategy save_total_limit | --saveEvery | --save-every N: the newest state takes the place of the last
eval_strategy | --evalEvery | --eval-every N; --eval-data are measured before and after too
dataloader_num_workers preprocessing_num_workers remove_unused_columns | --data | leave it out: records are read when needed
group_by_length padding_free packing_strategy | --packing | batches have records of like lengths; --packing joins short ones
attn_implementation torch_compile | -- | leave it out: the runtime chooses its own kernels
neftune_noise_alpha | --dropout | there is no noise on embeddings; --dropout is against learning by heart
num_beams do_sample | temperature | there is no beam search: a temperature of 0 takes the likeliest token, others draw
n num_return_sequences | temperature | give the prompt as often as you want texts: each has a seed of its own
callbacks stream on_token streamer | on | callbacks are in one option: on: { text } for new text, on: { step } for steps
schema json_schema response_format | --prompt | in code, generate(prompt, { schema }) keeps to it; in lowrank serve, response_format
prompt_file input_file | --prompt | --prompt "$(cat FILE)" takes a text from a file, --messages FILE a chat
test test_file test_data | --data | lowrank evaluate measures an adapter on --data; a training measures --eval-data
draft_model | --temperature | leave it out: no smaller model guesses ahead
xtc_probability | --temperature | sampling has --temperature, --top-k, --top-p and --min-p
ignore_chat_template | --raw | --raw continues a prompt as it is
num_ctx max_model_len max_kv_size | -- | the context is the model's own; --max-tokens or --max-new-tokens bounds an answer
enable_lora | --prefixCache | leave it out: it is always on, for adapters of any rank
tensor_parallel_size | --prefixCache | a server has one device; run one on each machine, behind a load balancer
think | --chatTemplateArgs | --chat-template-args enable_thinking=false, if the template has such a variable
export_gguf | -- | lowrank convert ADAPTER --to gguf --out FILE writes an adapter for llama.cpp
dequantize | --weightsOnly | quantized weights stay, with the factors beside them; --dtype fp32 merges into floats
eva | init | PEFT makes it: initialize_lora_eva_weights(model, dataloader). Train the adapter there
lora_ga | init | PEFT makes it: preprocess_loraga(model, config, train_step). Train the adapter there
corda | init | PEFT makes it: preprocess_corda(model, config, run_model). Train the adapter there
loftq | init | PEFT makes it: LoraConfig(init_lora_weights='loftq', loftq_config=LoftQConfig()). Train the adapter there
mica | init | PEFT makes it: LoraConfig(init_lora_weights='mica'). Train the adapter there
ties dare_linear dare_ties magnitude_prune density seed | combinationType | TIES and DARE are gone: exact adds the whole changes
cat svd | combinationType | leave it out: exact is the whole sum, and with a rank the closest of that rank
onnx-adapter | to | graphs need no inputs for it: openSession and lowrank serve run adapters of PEFT as they are
kto kl | loss | train({ task: 'kto' }) learns from ratings; a loss may also be a function of log-probabilities
shard shards | * | One process writes the whole result, in seconds for some GB: leave it out
resume finish | * | Give the same command again: it starts anew. Only a training goes on where it stopped
fsync | * | Results are always on the disk before they have their names: leave it out
reproducible | * | Every merge writes the same bytes on every machine: leave it out
`

interface Row {
  readonly words: readonly string[]
  readonly place: string
  readonly sentence: string | undefined
}

/** Removes separators and case, so that num_train_epochs, numTrainEpochs and num-train-epochs are equal. */
const plainWord = (word: string) => word.replaceAll(/[-_ ]/g, '').toLowerCase()

const rows = ROWS.trim()
  .split('\n')
  .map((row): Row => {
    const [words, place, sentence] = row.split(' | ')
    return { words: words.split(' ').map(plainWord), place, sentence }
  })

/** Longer words are not compared with names: nobody types them. */
const MAX_LENGTH = 100

/** The share of letters that may be wrong. A single letter always may. */
const WRONG_LETTERS = 0.25

/** Says what to do instead of using a word, if a row with a sentence is for one of the places. */
export function adviceOn(word: string, places: readonly string[]): string | undefined {
  const plain = plainWord(word)
  const found = rows.find(({ words, place, sentence }) => {
    return sentence !== undefined && words.includes(plain) && (place === '*' || places.includes(place))
  })
  return found?.sentence
}

/** Returns the word that was meant, or undefined if none is close. `before` is `lowrank ` if the words are commands. */
export function meantBy(word: string, words: readonly string[], before = ''): string | undefined {
  const plain = plainWord(word)
  if (plain === '' || plain.length > MAX_LENGTH) return undefined
  const places = rows.filter((row) => row.sentence === undefined && row.words.includes(plain)).map(({ place }) => place)
  const found =
    words.find((ours) => plainWord(ours) === plain) ?? words.find((ours) => places.includes(`${before}${ours}`))
  if (found !== undefined || plain.length < 3) return found
  const isNear = ({ ours, distance }: { ours: string; distance: number }) =>
    distance <= Math.max(1, Math.floor(Math.min(plain.length, plainWord(ours).length) * WRONG_LETTERS))
  const near = words.map((ours) => ({ ours, distance: editDistance(plain, plainWord(ours)) })).filter(isNear)
  return near.sort((a, b) => a.distance - b.distance)[0]?.ours
}
