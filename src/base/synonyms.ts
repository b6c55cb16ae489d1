// Finds the word that a person meant: it may be another tool's name for a thing, or misspelled.

import { editDistance } from './errors.js'

/** Options and values, in the words of PEFT, transformers, TRL, mlx-lm, Axolotl, LLaMA-Factory and kohya. */
const SYNONYMS: Readonly<Record<string, string>> = {
  // Options
  model:
    'base base_model base_model_name_or_path model_id model_name model_name_or_path model_path pretrained_model_name_or_path',
  base: 'model base_model base_model_name_or_path model_id model_name model_name_or_path model_path',
  adapter:
    'adapter_dir adapter_id adapter_model adapter_name adapter_names adapter_name_or_path adapter_path lora loras lora_name lora_request lora_model_dir lora_path peft_model_id resume_adapter_file adapter_file lora_modules',
  adapters: 'adapter adaptor adapter_path lora loras lora_modules',
  merged: 'model base',
  fineTuned: 'finetuned tuned model_tuned',
  out: 'output output_dir output_path save_dir save_path adapter_path o upload_name export_dir',
  data: 'dataset datasets dataset_path file train_data train_dataset train_file dataset_name data_files data_path',
  evalData: 'eval_dataset eval_file valid_data val_data validation_data validation_file',
  evalSplit: 'test_size val_set_size val_size val_split validation_split split',
  columns: 'field_map fields column_mapping dataset_text_field text_field label_column prompt_column',
  config: 'config_file',
  rank: 'r dim lora_dim lora_r lora_rank network_dim new_rank',
  alpha: 'a lora_alpha network_alpha',
  dropout: 'lora_dropout',
  targetModules: 'lora_target lora_target_modules target target_linear modules_to_adapt lora_target_parameters',
  numLayers: 'lora_layers num_lora_layers',
  excludeModules: 'exclude',
  modulesToSave: 'additional_target lora_modules_to_save',
  trainedTokens: 'trainable_token_indices trainable_tokens added_tokens',
  init: 'init_lora_weights init_weights initialization',
  seed: 'random_seed random_state manual_seed data_seed',
  useDora: 'dora',
  useRslora: 'rslora rs_lora peft_use_rslora',
  epochs: 'epoch n_epochs num_epochs num_train_epochs max_train_epochs',
  maxSteps: 'iters iterations max_iters max_train_steps num_steps steps train_steps',
  steps: 'iters iterations max_steps num_steps',
  batchSize:
    'bs micro_batch_size per_device_train_batch_size train_batch_size bsz batch per_device_eval_batch_size eval_batch_size',
  gradientAccumulation: 'accumulation_steps grad_accum grad_accumulation_steps gradient_accumulation_steps',
  maxLength:
    'block_size context_length cutoff_len max_seq_len max_seq_length seq_len sequence_len sequence_length max_prompt_length truncation_mode',
  learningRate: 'lr step_size unet_lr',
  schedule: 'lr_schedule lr_scheduler lr_scheduler_type scheduler lr_scheduler_kwargs',
  warmupRatio: 'warmup',
  warmupSteps: 'lr_warmup_steps num_warmup_steps',
  loraPlusRatio: 'loraplus loraplus_lr_ratio',
  weightDecay: 'wd decay',
  maxGradNorm: 'clip clip_grad grad_clip gradient_clip gradient_clipping max_norm',
  memory: 'low_memory fast gradient_checkpointing grad_checkpoint low_vram',
  saveEvery: 'save_steps save_every_n_steps steps_per_save checkpoint_every',
  evalEvery: 'eval_steps steps_per_eval eval_interval evaluate_every',
  keep: 'load_best_model load_best_model_at_end',
  bestMetric: 'metric_for_best_model',
  earlyStopping: 'early_stopping_patience patience',
  packing: 'pack sample_packing neat_packing',
  resume: 'resume_from_checkpoint continue resume_adapter_file',
  overwrite: 'force overwrite_output_dir',
  newHead: 'ignore_mismatched_sizes',
  taskOptions: 'task_config',
  chatTemplate: 'jinja_template template chat_template_path',
  chatTemplateArgs: 'chat_template_kwargs',
  dtype: 'bits load_in_4bit load_in_8bit precision quant quantization torch_dtype',
  outDtype: 'output_dtype out_type outtype save_dtype save_precision',
  device: 'device_map ep execution_provider execution_providers provider backend gpu cpu',
  threads: 'cores intra_op_num_threads n_threads num_threads workers num_workers',
  maxShardBytes: 'max_shard_size shard_size',
  maxShardSize: 'max_shard_bytes shard_size export_size',
  weight: 'adapter_weight scale strength',
  combinationType: 'combination_method merge_method method',
  density: 'dare_density drop_rate',
  energy: 'sv_fro dynamic_energy',
  maxNewTokens: 'max_completion_tokens max_tokens n_predict num_predict new_tokens max_length n_tokens',
  prompt: 'p input text query',
  text: 'input prompt sentence',
  system: 'sys system_prompt system_message',
  temperature: 'temp',
  stop: 'stop_sequences stop_strings extra_eos_token eos_token',
  repetitionPenalty: 'repeat_penalty repetition',
  maxAdapters: 'max_loras max_cpu_loras',
  maxRunning: 'max_num_seqs',
  html: 'report page',
  to: 'format to_format target_format',
  initial: 'initial_adapter path_initial_model_for_weight_conversion',
  // Values
  fp32: 'f32 float32 float full',
  fp16: 'f16 float16 half',
  bf16: 'bfloat16',
  q4: '4bit int4 nf4',
  q8: '8bit',
  'causal-lm': 'causal_lm clm language-modeling lm sft text-generation',
  dpo: 'preference preferences',
  'text-classification': 'classification sequence-classification seq_cls sentiment-analysis',
  'token-classification': 'ner token_cls tagging',
  embedding: 'embeddings feature-extraction feature_extraction sentence-similarity',
  seq2seq: 'seq2seq-lm seq_2_seq_lm summarization text2text text2text-generation translation',
  webgpu: 'gpu',
  cuda: 'nvidia',
}

/** Inits that PEFT has and lowrank does not, with the calls to write in Python. */
const PEFT_STARTS: Readonly<Record<string, string>> = {
  eva: "get_peft_model(model, LoraConfig(init_lora_weights='eva', eva_config=EvaConfig())) and initialize_lora_eva_weights(model, dataloader)",
  loraga:
    "preprocess_loraga(model, config, train_step) and get_peft_model with config = LoraConfig(init_lora_weights='lora_ga', lora_ga_config=LoraGAConfig())",
  corda:
    "preprocess_corda(model, config, run_model=…) and get_peft_model with config = LoraConfig(init_lora_weights='corda', corda_config=CordaConfig())",
  loftq: "get_peft_model(model, LoraConfig(init_lora_weights='loftq', loftq_config=LoftQConfig()))",
  mica: "get_peft_model(model, LoraConfig(init_lora_weights='mica'))",
}

/** Says what to do instead of using an init that lowrank does not have. Returns undefined for any other word. */
export function peftStart(word: string): string | undefined {
  const call = PEFT_STARTS[plainWord(word)]
  return call && `PEFT makes adapters of this kind: ${call}. Train them there`
}

/** For options that were removed: what to do instead, with the words that lead to it. */
const ADVICE: Readonly<Record<string, string>> = {
  'One process writes the whole result, in seconds for some GB: leave it out': 'shard shards share shares',
  'Give the same command again: it starts anew. Only a training goes on where it stopped': 'resume finish',
  'Results are always on the disk before they have their names: leave it out': 'fsync sync',
  'Every merge writes the same bytes on every machine: leave it out': 'reproducible',
}

/** Other names of commands. They are separate because web pages have no commands. */
export const COMMAND_SYNONYMS: Readonly<Record<string, string>> = {
  train: 'finetune fine-tune fit lora qlora tune',
  evaluate: 'eval perplexity score',
  push: 'upload publish share',
  serve: 'server vllm-serve api',
  data: 'dataset preprocess prepare tokenize validate-data',
  merge: 'fuse merge-lora merge_and_unload bake',
  unmerge: 'unfuse unload',
  combine: 'add_weighted_adapter mix mergekit',
  resize: 'compress shrink truncate',
  generate: 'ask chat complete infer inference predict run',
  classify: 'ner tag',
  embed: 'embedding embeddings encode vectors',
  inspect: 'cat describe info show stats',
  extract: 'extract-lora lora-extract',
}

/** Removes separators and case, so that num_train_epochs, numTrainEpochs and num-train-epochs are equal. */
export const plainWord = (word: string) => word.replaceAll(/[-_ ]/g, '').toLowerCase()

/** Longer words are not compared with option names: nobody types them. */
const MAX_LENGTH = 100

/** The share of letters that may be wrong. A single letter always may. */
const WRONG_LETTERS = 0.25

/** Says what to do instead of using an option that was removed. */
export function adviceOn(word: string): string | undefined {
  return Object.keys(ADVICE).find((advice) => ADVICE[advice].split(' ').includes(plainWord(word)))
}

/** Returns the word that was meant, or undefined if none is close. */
export function meantBy(word: string, words: readonly string[], synonyms = SYNONYMS): string | undefined {
  const plain = plainWord(word)
  if (plain === '' || plain.length > MAX_LENGTH) return undefined
  const isNamed = (ours: string) => synonyms[ours]?.split(' ').some((theirs) => plainWord(theirs) === plain)
  const found = words.find((ours) => plainWord(ours) === plain) ?? words.find(isNamed)
  if (found !== undefined) return found
  const near = words
    .map((ours) => ({ ours, distance: editDistance(plain, plainWord(ours)) }))
    .filter(({ ours, distance }) => {
      return (
        distance <= Math.max(1, Math.floor(Math.min(plain.length, plainWord(ours).length) * WRONG_LETTERS)) &&
        plain.length > 2
      )
    })
  return near.sort((a, b) => a.distance - b.distance)[0]?.ours
}
