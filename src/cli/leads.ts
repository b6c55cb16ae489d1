// Options and commands of transformers, TRL, mlx-lm and ollama that lowrank does not have, and what to use instead.

import { plainWord } from '../base/synonyms.js'

interface Lead {
  readonly words: string
  readonly says: string
  /** The advice is only for commands with this option. Without it, the advice is for every command. */
  readonly needs?: string
}

const COMMANDS: readonly Lead[] = [
  { words: 'validate check', says: 'lowrank data checks records, lowrank inspect an adapter or a model' },
  { words: 'test', says: 'lowrank evaluate measures an adapter, lowrank data checks records' },
  { words: 'sft', says: 'lowrank train learns from texts and chats' },
  { words: 'dpo orpo', says: 'lowrank train --task dpo learns from pairs of answers' },
  { words: 'kto', says: 'lowrank train --task kto learns from answers with a thumb up or down' },
  { words: 'grpo rloo ppo', says: 'lowrank train --task grpo --rewards FILE learns from functions that judge texts' },
  { words: 'reward', says: 'lowrank train --task dpo learns from preferences, without a model of rewards' },
  { words: 'search', says: 'models and adapters of the Hub are found at https://huggingface.co/models' },
  {
    words: 'list ls manage',
    says: 'lowrank inspect DIR shows a model or an adapter; those of the Hub lie in its cache: hf cache ls',
  },
  { words: 'ps', says: 'a running lowrank serve lists its models at /v1/models' },
  { words: 'webui ui gui webchat', says: 'lowrank serve MODEL has a page: open its address in a browser' },
  { words: 'compare', says: 'lowrank diff compares the weights of adapters, lowrank evaluate their answers' },
  {
    words: 'export save',
    says: 'lowrank merge writes a whole model, lowrank convert an adapter for llama.cpp, Ollama or mlx-lm',
  },
  {
    words: 'pull download',
    says: 'a model of the Hub loads when a command names it, such as lowrank chat owner/name',
  },
  {
    words: 'rm remove delete cp copy',
    says: 'adapters are ordinary folders; models of the Hub lie in its cache: hf cache rm',
  },
  { words: 'create', says: 'lowrank convert ADAPTER --to ollama --out DIR writes a Modelfile for ollama create' },
  { words: 'stop', says: 'Ctrl-C stops a command; lowrank serve first answers what has begun' },
  { words: 'env doctor', says: 'lowrank --version says the version; node --version that of Node' },
  { words: 'login signin logout signout whoami', says: 'the Hub takes HF_TOKEN, or the login of hf auth login' },
  {
    words: 'quant quantize awq gptq dwq',
    says: 'models are quantized where they are exported; --dtype q4 opens such a graph',
  },
  { words: 'cache-prompt', says: 'lowrank serve keeps what it has read: --prefix-cache' },
]

const ALWAYS = 'leave it out: '

const OPTIONS: readonly Lead[] = [
  {
    words:
      'qlora use_qlora quantize quantization_bit load_in_4bit load_in_8bit bnb_4bit_quant_type use_bnb_nested_quant',
    needs: 'dtype',
    says: '--dtype q4 opens a quantized graph, whose weights stay quantized, as in QLoRA',
  },
  { words: 'bf16 fp16 tf32 half', needs: 'outDtype', says: '--out-dtype fp16 or bf16 is the type that is written' },
  {
    words: 'bf16 fp16 tf32 half bf16_full_eval fp16_full_eval',
    needs: 'dtype',
    says: '--dtype fp16 opens a graph in half precision, if the model has one; its type is what is computed in',
  },
  {
    words: 'gpu use_gpu cuda n_gpu_layers ngl num_gpu',
    needs: 'device',
    says: 'say --device webgpu, or --device cuda',
  },
  { words: 'cpu use_cpu no_cuda', needs: 'device', says: 'say --device cpu, the default' },
  {
    words: 'fsdp fsdp_config deepspeed ddp_backend local_rank accelerate_config multi_gpu',
    needs: 'gradientAccumulation',
    says: 'a run here has one device; lowrank handoff RUN --to trl goes on with it on several GPUs',
  },
  { words: 'beta', needs: 'taskOptions', says: '--task-options beta=0.1, for --task dpo or kto' },
  {
    words: 'label_smoothing label_smoothing_factor',
    needs: 'taskOptions',
    says: '--task-options labelSmoothing=0.1, for --task dpo',
  },
  {
    words: 'loss_type loss',
    needs: 'taskOptions',
    says: 'a task has its loss: --task dpo or kto. That of embedding is --task-options loss=cosine, in-batch or triplet',
  },
  {
    words: 'text_field text_column dataset_text_field prompt_feature completion_feature chat_feature',
    needs: 'columns',
    says: '--columns text=NAME, or prompt=NAME,completion=NAME, names the fields of your data',
  },
  {
    words: 'label_column label_field label_names',
    needs: 'columns',
    says: '--columns label=NAME names the field of your data',
  },
  {
    words: 'dataset_name dataset_config dataset_streaming hf_dataset',
    needs: 'data',
    says: 'load the files first (hf download --repo-type dataset owner/name), and name them with --data',
  },
  {
    words: 'dataset_train_split dataset_test_split',
    needs: 'evalData',
    says: 'splits are files: --data for training, --eval-data for evaluation',
  },
  {
    words: 'fine_tune_type finetuning_type',
    needs: 'useDora',
    says: 'train makes LoRA, and with --use-dora DoRA; it does not train whole models',
  },
  {
    words: 'num_generations max_completion_length num_iterations reward_funcs reward_weights',
    needs: 'rewards',
    says: '--task grpo --rewards FILE learns from functions that judge texts; --task-options numGenerations=8 and the like',
  },
  {
    words: 'desirable_weight undesirable_weight',
    needs: 'taskOptions',
    says: '--task-options desirableWeight=1, for --task kto',
  },
  { words: 'use_peft use_lora', needs: 'useDora', says: `${ALWAYS}train makes a LoRA adapter` },
  { words: 'train do_train', needs: 'useDora', says: `${ALWAYS}lowrank train trains` },
  {
    words: 'test do_eval do_predict test_batches',
    needs: 'evalData',
    says: '--eval-data FILE is measured before and after; lowrank evaluate measures a finished adapter',
  },
  { words: 'val_batches eval_batches', needs: 'evalData', says: `${ALWAYS}all records of --eval-data are measured` },
  {
    words: 'mask_prompt assistant_only_loss completion_only_loss train_on_responses_only',
    needs: 'maxLength',
    says: `${ALWAYS}it is always on. Only answers are learned, and of {"text"} all of it`,
  },
  {
    words: 'train_on_inputs train_on_prompt',
    needs: 'maxLength',
    says: 'only answers are learned; put the whole text into {"text"} to learn all of it',
  },
  {
    words: 'push_to_hub hub_model_id hub_private_repo hub_strategy hub_always_push upload_repo export_hub_model_id',
    needs: 'out',
    says: 'afterwards, lowrank push DIR owner/name sends the adapter to the Hub',
  },
  { words: 'hub_token hf_token token use_auth_token', says: 'set HF_TOKEN, or run hf auth login' },
  {
    words: 'max_train_samples max_eval_samples max_samples limit',
    needs: 'data',
    says: 'write the records that you want into a file: head -n 100 data.jsonl > some.jsonl',
  },
  { words: 'use_fast_tokenizer eos_token pad_token', says: `${ALWAYS}tokenizer.json and the model's configs say it` },
  { words: 'private', needs: 'public', says: `${ALWAYS}new repositories are private; --public makes a public one` },
  {
    words: 'log_level verbosity',
    needs: 'log',
    says: '--log json or text prints a line for each request; --quiet prints less',
  },
  {
    words: 'num_parallel parallel',
    needs: 'maxRunning',
    says: '--max-running N bounds how many texts are written at a time',
  },
  { words: 'truncate', needs: 'maxLength', says: '--max-length N cuts longer texts' },
  {
    words: 'tasks num_shots num_fewshot',
    needs: 'resamples',
    says: 'lowrank evaluate measures your own records; for benchmarks, merge the adapter and run lm_eval on the result',
  },
  { words: 'hf_path', says: 'name the model itself: a folder, or owner/name of the Hub' },
  { words: 'cache_dir', says: 'set HF_HOME: the cache is the one of Python' },
  { words: 'revision model_revision', says: 'write it behind the id: owner/name@revision' },
  { words: 'trust_remote_code', says: `${ALWAYS}no code of a model is run` },
  {
    words: 'dry_run',
    needs: 'gradientAccumulation',
    says: 'lowrank data checks the records without training; --max-steps 1 takes one step',
  },
  { words: 'optim optimizer optim_args', needs: 'weightDecay', says: `${ALWAYS}the optimizer is AdamW` },
  {
    words: 'adam_beta1 adam_beta2 adam_epsilon',
    needs: 'weightDecay',
    says: `${ALWAYS}AdamW has 0.9, 0.999 and 1e-8, as in transformers`,
  },
  {
    words: 'logging_steps steps_per_report logging_strategy logging_first_step',
    needs: 'maxSteps',
    says: `${ALWAYS}every step is in metrics.jsonl of the run`,
  },
  {
    words: 'wandb project run_name tensorboard report_to logger log_dir logging_dir',
    needs: 'maxSteps',
    says: 'every step is in metrics.jsonl of the run, and its curves are in report.html; the name of a run is its --out',
  },
  {
    words: 'save_strategy save_total_limit',
    needs: 'saveEvery',
    says: '--save-every N: the newest state takes the place of the last',
  },
  {
    words: 'eval_strategy evaluation_strategy eval_on_start',
    needs: 'evalEvery',
    says: '--eval-every N; the data of --eval-data are measured before and after too',
  },
  { words: 'greater_is_better', needs: 'bestMetric', says: `${ALWAYS}--best-metric knows which way is better` },
  {
    words: 'dataloader_num_workers dataset_num_proc preprocessing_num_workers remove_unused_columns',
    needs: 'data',
    says: `${ALWAYS}records are read as they are needed`,
  },
  {
    words: 'group_by_length length_column_name padding_free packing_strategy train_sampling_strategy',
    needs: 'packing',
    says: `${ALWAYS}batches hold records of like lengths; --packing joins short ones`,
  },
  {
    words:
      'attn_implementation flash_attn use_flash_attention use_liger_kernel torch_compile torch_compile_backend unsloth',
    says: `${ALWAYS}the runtime chooses its own kernels`,
  },
  {
    words: 'neftune_noise_alpha',
    needs: 'dropout',
    says: 'there is no noise on embeddings; --dropout is against learning by heart',
  },
  { words: 'use_cache', says: `${ALWAYS}texts are written with a cache` },
  { words: 'do_sample', needs: 'temperature', says: '--temperature above 0 samples; 0 takes the likeliest token' },
  {
    words: 'num_beams',
    needs: 'temperature',
    says: 'there is no beam search; --temperature 0 takes the likeliest token',
  },
  {
    words: 'num_draft_tokens draft_model assistant_model',
    needs: 'temperature',
    says: `${ALWAYS}no smaller model guesses ahead`,
  },
  {
    words: 'xtc_probability xtc_threshold typical_p tfs_z mirostat',
    needs: 'temperature',
    says: 'sampling here has --temperature, --top-k, --top-p and --min-p',
  },
  {
    words: 'num_ctx ctx_size context_length max_kv_size kv_bits max_position_embeddings',
    needs: 'temperature',
    says: `${ALWAYS}the context is the model's own; --max-new-tokens bounds an answer`,
  },
  {
    words: 'max_model_len num_ctx ctx_size context_length max_position_embeddings',
    needs: 'prefixCache',
    says: `${ALWAYS}the context is the model's own; --max-tokens bounds an answer`,
  },
  {
    words: 'enable_lora max_lora_rank enable_prefix_caching enable_auto_tool_choice tool_call_parser',
    needs: 'prefixCache',
    says: `${ALWAYS}it is always on. Adapters may have any rank, and what was read is not read again`,
  },
  {
    words: 'tensor_parallel_size data_parallel_size gpu_memory_utilization',
    needs: 'prefixCache',
    says: 'a server has one device; run one on each machine, behind a load balancer',
  },
  {
    words: 'think enable_thinking reasoning_effort hidethinking',
    needs: 'chatTemplateArgs',
    says: '--chat-template-args enable_thinking=false, if the template has such a variable',
  },
  { words: 'ignore_chat_template no_chat_template', needs: 'raw', says: '--raw continues a prompt as it is' },
  {
    words: 'use_default_chat_template apply_chat_template',
    needs: 'chat',
    says: '--chat puts a prompt into the chat template',
  },
  { words: 'prompt_cache_file prompt_cache', says: 'lowrank serve keeps what it has read: --prefix-cache' },
  {
    words: 'export_gguf gguf_path',
    says: 'lowrank convert ADAPTER --to gguf --out FILE writes an adapter for llama.cpp',
  },
  {
    words: 'dequantize de_quantize',
    needs: 'weightsOnly',
    says: 'quantized weights stay, and the factors are written beside them; --dtype fp32 merges into a graph of floats',
  },
]

/** Returns what to use instead of a word of another tool. `keys` are the options of the command. */
export function leadOf(word: string, keys?: readonly string[]): string | undefined {
  const asked = plainWord(word)
  const isMeant = ({ words, needs }: Lead) =>
    words.split(' ').some((candidate) => plainWord(candidate) === asked) &&
    (needs === undefined || keys?.includes(needs) === true)
  return (keys === undefined ? COMMANDS : OPTIONS).find(isMeant)?.says
}
