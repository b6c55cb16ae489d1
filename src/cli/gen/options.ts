// Made by scripts/generate/options.mjs from the types. Do not edit.

import type { FlagTable } from '../flags.js'

export const FLAGS = {
  ToPlainOptions: {
    base: {
      form: 'text',
      about:
        "The base as it was before training: a safetensors checkpoint, or a function that gives its weights (d, k) by the layer's name, of which one is held at a time. Enough for pissa and olora.",
    },
    initial: {
      form: 'text',
      about:
        'The adapter as it was before training, if you saved it. Exact for every start; lora-ga and corda need it.',
    },
  },
  InspectOptions: {
    base: {
      form: 'text',
      about:
        'A model to compare the adapter with. It takes the same values as --base of {@link merge }. Only for adapters in folders.',
    },
    relativeChange: {
      form: 'switch',
      about: 'Reports ‖s·B·A‖ / ‖W‖ for each layer. This reads the weights of the base. Default false.',
    },
    strict: {
      form: 'switch',
      about: 'Counts targets and patterns of the config that match nothing as problems. Default false: warnings.',
    },
    dtype: {
      form: 'word',
      about:
        'Which graph to inspect if the folder has several. Default: the checkpoint; if there is none, the graph that config.json names.',
      words: ['auto', 'fp32', 'fp16', 'q8', 'int8', 'uint8', 'q4', 'q4f16', 'bnb4', 'q2', 'q2f16', 'q1', 'q1f16'],
    },
  },
  MergeOptions: {
    base: {
      form: 'text',
      about: 'A folder with a model, an .onnx file, a safetensors file or its index.',
      isRequired: true,
    },
    out: {
      form: 'text',
      about:
        "The place of the result. A path that ends in .onnx or .safetensors is a file. Other paths are folders, which also get the base's configuration and tokenizer.",
      isRequired: true,
    },
    format: {
      form: 'word',
      about:
        'Format of the result. Default: the format of the base file. If the base is a folder: onnx if it has an .onnx model, else safetensors.',
      words: ['onnx', 'safetensors', 'both'],
    },
    dtype: {
      form: 'word',
      about:
        "Which of the base's graphs is read, by the names that transformers.js gives the files: fp32, fp16, q8, q4, … Default: what config.json says, else fp32. For .onnx.",
      words: ['auto', 'fp32', 'fp16', 'q8', 'int8', 'uint8', 'q4', 'q4f16', 'bnb4', 'q2', 'q2f16', 'q1', 'q1f16'],
    },
    allowMissing: {
      form: 'switch',
      about:
        'Goes on where something has no place or no values: layers that an .onnx export dropped are left out, and what a head needs but neither base nor adapters have is drawn anew by loaders. Default false.',
    },
    maxShardBytes: {
      form: 'number',
      about: 'Largest size of a weight file in bytes. Default: the same files as the base. Not for .onnx.',
    },
    weightsOnly: {
      form: 'switch',
      about:
        "Writes the weights alone, without the base's configuration and tokenizer. Default false; a result that is a file has none anyway.",
    },
    externalData: {
      form: 'word',
      about:
        'How data files of the base that stay as they are come into the result: copy, or hardlink, which needs no room. Where no link can be made the file is copied, and a warning says so. Default copy. For .onnx.',
      words: ['copy', 'hardlink'],
    },
    strict: {
      form: 'switch',
      about: 'Throws an error if a target or pattern of the config matches no layer of the adapter. Default false.',
    },
    reproducible: {
      form: 'switch',
      about:
        'The same bytes on every machine. Default false: a little faster, but the last bits depend on the machine.',
    },
    modules: {
      form: 'pairs',
      about: "Module name → name of the node or of its weight, where an .onnx file's own names do not tell.",
    },
    overwrite: { form: 'switch', about: 'Replaces an output that a merge wrote. Default false.' },
    threads: {
      form: 'number',
      about:
        'Number of threads, including the calling thread. Default: one for each core, at most 4. A merge into .onnx uses one thread.',
    },
    fsync: { form: 'switch', about: 'Waits until all files are written to the disk (fsync). Default true.' },
    tied: {
      form: 'word',
      about:
        "What happens to tied embeddings that an adapter changes for one use only. Default: refuse in safetensors. An .onnx is always untied, as PEFT's result is.",
      words: ['refuse', 'untie', 'keep'],
    },
    outDtype: {
      form: 'word',
      about:
        'Type of the weights that are written; all fp64, fp32, fp16 and bf16 tensors are converted. Default keep. In an .onnx it is the type of the factors beside quantized weights, fp32 or fp16.',
      words: ['keep', 'fp32', 'fp16', 'bf16'],
    },
    quantized: {
      form: 'word',
      about:
        'What happens to quantized weights. branches leaves them as they are and puts the factors beside them, so that the result is what a session computes; requantize quantizes W + s·B·A again in the same layout (MatMulNBits), and reports the error that this adds. Default branches. For .onnx with quantized weights.',
      words: ['branches', 'requantize'],
    },
  },
  UnmergeOptions: {
    merged: { form: 'text', about: 'The result of a merge.', isRequired: true },
    original: {
      form: 'text',
      about: 'The original base checkpoint. The report counts the values that differ from it. Not for .onnx.',
    },
    tied: {
      form: 'word',
      about:
        'Use keep if the merge used --tied keep. Leave it out if the merge used untie. Default refuse. Not for .onnx.',
      words: ['refuse', 'keep'],
    },
    out: {
      form: 'text',
      about:
        "The place of the result. A path that ends in .onnx or .safetensors is a file. Other paths are folders, which also get the base's configuration and tokenizer.",
      isRequired: true,
    },
    format: {
      form: 'word',
      about:
        'Format of the result. Default: the format of the base file. If the base is a folder: onnx if it has an .onnx model, else safetensors.',
      words: ['onnx', 'safetensors', 'both'],
    },
    dtype: {
      form: 'word',
      about:
        "Which of the base's graphs is read, by the names that transformers.js gives the files: fp32, fp16, q8, q4, … Default: what config.json says, else fp32. For .onnx.",
      words: ['auto', 'fp32', 'fp16', 'q8', 'int8', 'uint8', 'q4', 'q4f16', 'bnb4', 'q2', 'q2f16', 'q1', 'q1f16'],
    },
    allowMissing: {
      form: 'switch',
      about:
        'Goes on where something has no place or no values: layers that an .onnx export dropped are left out, and what a head needs but neither base nor adapters have is drawn anew by loaders. Default false.',
    },
    maxShardBytes: {
      form: 'number',
      about: 'Largest size of a weight file in bytes. Default: the same files as the base. Not for .onnx.',
    },
    weightsOnly: {
      form: 'switch',
      about:
        "Writes the weights alone, without the base's configuration and tokenizer. Default false; a result that is a file has none anyway.",
    },
    externalData: {
      form: 'word',
      about:
        'How data files of the base that stay as they are come into the result: copy, or hardlink, which needs no room. Where no link can be made the file is copied, and a warning says so. Default copy. For .onnx.',
      words: ['copy', 'hardlink'],
    },
    strict: {
      form: 'switch',
      about: 'Throws an error if a target or pattern of the config matches no layer of the adapter. Default false.',
    },
    reproducible: {
      form: 'switch',
      about:
        'The same bytes on every machine. Default false: a little faster, but the last bits depend on the machine.',
    },
    modules: {
      form: 'pairs',
      about: "Module name → name of the node or of its weight, where an .onnx file's own names do not tell.",
    },
    overwrite: { form: 'switch', about: 'Replaces an output that a merge wrote. Default false.' },
    threads: {
      form: 'number',
      about:
        'Number of threads, including the calling thread. Default: one for each core, at most 4. A merge into .onnx uses one thread.',
    },
    fsync: { form: 'switch', about: 'Waits until all files are written to the disk (fsync). Default true.' },
  },
  OpenSessionOptions: {
    allowMissing: {
      form: 'switch',
      about:
        'Leaves out layers of an adapter if the export does not have their module. Default false: such layers are an error.',
    },
    modules: {
      form: 'pairs',
      about: 'Module name → name of its node or weight. Needed only if the graph does not name its modules.',
    },
    threads: {
      form: 'number',
      about:
        "Threads of a product. In browsers, the page must be isolated from other origins. Default: the runtime's own choice. In browsers that is half of the processors, and at most 4.",
    },
    lowMemory: {
      form: 'switch',
      about: 'Uses less memory, but runs a few percent slower: ONNX Runtime does not copy the weights.',
    },
    optimization: {
      form: 'word',
      about: "Graph optimization level. Default 'all'.",
      words: ['disabled', 'basic', 'extended', 'all'],
    },
    profilePrefix: { form: 'text', about: 'Write a profile next to this prefix (Node).' },
    device: {
      form: 'names',
      about:
        "The device that runs the model, with ONNX Runtime's names: cpu, webgpu, cuda, coreml, dml, … You can give several. If the first cannot compute an operator, the next one does. Default: the CPU.",
    },
    accuracyLevel: {
      form: 'word',
      about:
        "How exact the products by quantized weights (MatMulNBits) are, as ONNX Runtime counts. With 4, their inputs are rounded to 8 bits. This is faster on the CPU, most of all for several texts, and less exact. With 0 they stay floats. 4 is an error if the model has no such products. Default: what the model's file says, which is 0 if it says nothing.",
      words: ['', ''],
    },
  },
  CombineOptions: {
    base: {
      form: 'text',
      about:
        'The model of the adapters: a safetensors checkpoint. Only DoRA adapters need it, because their change depends on its weights.',
    },
    combinationType: {
      form: 'word',
      about: "PEFT's name of the way, or exact. Default exact; with --peft-compatible, svd as in PEFT.",
      words: [
        'exact',
        'svd',
        'cat',
        'linear',
        'ties',
        'ties_svd',
        'dare_linear',
        'dare_linear_svd',
        'dare_ties',
        'dare_ties_svd',
        'magnitude_prune',
        'magnitude_prune_svd',
      ],
    },
    density: {
      form: 'number',
      about: "For ties, dare and magnitude_prune: the share of each adapter's values that is kept.",
    },
    majoritySignMethod: {
      form: 'word',
      about:
        'For ties and dare_ties: how the sign of a value is chosen. total: the sign of the sum. frequency: the sign that most adapters have. Default total.',
      words: ['total', 'frequency'],
    },
    seed: {
      form: 'number',
      about: 'For dare: which values are kept. The same seed and adapters give the same result.',
      fallback: '0',
    },
    peftCompatible: {
      form: 'switch',
      about:
        "Gives exactly the result of PEFT's add_weighted_adapter, even if it is wrong: with rsLoRA its results are √r times too large. Only the random values of dare are others. Default false.",
    },
    rank: {
      form: 'number',
      about:
        'r: the rank of all layers, or the largest that another rule may give. No layer gets a higher rank than the rank of its s·B·A.',
    },
    energy: { form: 'number', about: 'The smallest rank that keeps this share of the energy Σσ².' },
    error: { form: 'number', about: "The smallest rank whose error ‖ΔW − ΔW'‖/‖ΔW‖ (Frobenius) is not above this." },
    ratio: { form: 'number', about: 'Keeps the singular values σᵢ that are at least this share of σ₁.' },
  },
  ConvertAdapterOptions: {
    to: {
      form: 'word',
      about: 'The format of the result: peft, gguf, mlx or onnx-adapter.',
      words: ['peft', 'gguf', 'mlx', 'onnx-adapter'],
      isRequired: true,
    },
    out: {
      form: 'text',
      about: 'The place of the result: a folder. For gguf and onnx-adapter, it can also be a file.',
      isRequired: true,
    },
    base: {
      form: 'text',
      about:
        'The model of the adapter: a folder with config.json, or a GGUF file. Converting from and to GGUF needs it.',
    },
    outDtype: {
      form: 'word',
      about: 'The type of the factors in the result. Default keep: that of each layer. q8_0 is for GGUF alone.',
      words: ['q8_0', 'keep', 'fp32', 'fp16', 'bf16'],
    },
  },
  ExtractOptions: {
    base: { form: 'text', about: 'The model before fine-tuning: a safetensors checkpoint.', isRequired: true },
    fineTuned: { form: 'text', about: 'The model after it: a checkpoint with the same names.', isRequired: true },
    embeddings: {
      form: 'word',
      about:
        "How changed input and output embeddings are kept: lora, as layers; save, whole, as PEFT's modules_to_save; skip, not at all. Those with another number of tokens are saved whole instead of lora.",
      words: ['lora', 'save', 'skip'],
      fallback: 'lora',
    },
    others: {
      form: 'word',
      about:
        'What happens to changed tensors that LoRA cannot carry, such as norms and biases: save keeps them whole, skip leaves them out. The result lists them in both cases.',
      words: ['save', 'skip'],
      fallback: 'save',
    },
    rank: {
      form: 'number',
      about:
        'r: the rank of all layers, or the largest that another rule may give. No layer gets a higher rank than the rank of its s·B·A.',
    },
    energy: { form: 'number', about: 'The smallest rank that keeps this share of the energy Σσ².' },
    error: { form: 'number', about: "The smallest rank whose error ‖ΔW − ΔW'‖/‖ΔW‖ (Frobenius) is not above this." },
    ratio: { form: 'number', about: 'Keeps the singular values σᵢ that are at least this share of σ₁.' },
  },
  ResizeOptions: {
    rank: {
      form: 'number',
      about:
        'r: the rank of all layers, or the largest that another rule may give. No layer gets a higher rank than the rank of its s·B·A.',
    },
    energy: { form: 'number', about: 'The smallest rank that keeps this share of the energy Σσ².' },
    error: { form: 'number', about: "The smallest rank whose error ‖ΔW − ΔW'‖/‖ΔW‖ (Frobenius) is not above this." },
    ratio: { form: 'number', about: 'Keeps the singular values σᵢ that are at least this share of σ₁.' },
  },
  PreviewDataOptions: {
    count: { form: 'number', about: 'How many examples.', fallback: '3' },
    dtype: {
      form: 'word',
      about: 'Which graph of a model that is not open yet: see loadModel.',
      words: ['auto', 'fp32', 'fp16', 'q8', 'int8', 'uint8', 'q4', 'q4f16', 'bnb4', 'q2', 'q2f16', 'q1', 'q1f16'],
    },
    model: {
      form: 'text',
      about:
        'The base: an open model (train does not close it), or any source that loadModel accepts. Its weights are read, never changed.',
      isRequired: true,
    },
    data: {
      form: 'text',
      about:
        'The training data: records; the path of a file or folder with records (JSONL, JSON, CSV, TSV, Parquet, text); a Blob; or a list of files.',
      isRequired: true,
    },
    task: {
      form: 'text',
      about:
        'The task. Default: causal-lm, to continue texts, or seq2seq for a model with an encoder and a decoder, such as T5.',
    },
    columns: {
      form: 'pairs',
      about:
        "Field of a record → its name in your data: { prompt: 'question', completion: 'answer' }. Other fields are left out.",
    },
    maxLength: {
      form: 'number',
      about: "Longer records are cut to this number of tokens. Default: the model's context.",
    },
    chatTemplate: { form: 'text', about: "Text of a chat template (Jinja). Default: the model's own." },
    chatTemplateArgs: {
      form: 'settings',
      about: 'Further variables of the chat template: { enable_thinking: false }.',
    },
  },
  TrainOptions: {
    model: {
      form: 'text',
      about:
        'The base: an open model (train does not close it), or any source that loadModel accepts. Its weights are read, never changed.',
      isRequired: true,
    },
    dtype: {
      form: 'word',
      about: 'Which graph of a model that is not open yet: see loadModel.',
      words: ['auto', 'fp32', 'fp16', 'q8', 'int8', 'uint8', 'q4', 'q4f16', 'bnb4', 'q2', 'q2f16', 'q1', 'q1f16'],
    },
    data: {
      form: 'text',
      about:
        'The training data: records; the path of a file or folder with records (JSONL, JSON, CSV, TSV, Parquet, text); a Blob; or a list of files.',
      isRequired: true,
    },
    evalData: {
      form: 'text',
      about: 'Records for measuring the loss before and after training. Same forms as --data.',
    },
    out: { form: 'text', about: 'The folder for adapter, metrics and state. Without it nothing is written.' },
    tensorboard: {
      form: 'text',
      about:
        'A folder for TensorBoard: train adds an event file with the loss, the learning rate and the norm of the gradients of each step, and with the metrics of each evaluation. Each run should have a folder of its own. A resumed run takes the same folder.',
    },
    modules: {
      form: 'pairs',
      about: 'Module name → name of its node or its weight, for graphs that do not name their modules.',
    },
    threads: {
      form: 'number',
      about:
        'Threads of the runtime. Default: its own choice. In browsers that is half of the processors, and at most 4.',
    },
    lowMemory: { form: 'switch', about: 'Uses less memory; a little slower.' },
    device: {
      form: 'names',
      about:
        "Where the model runs, with ONNX Runtime's names: cpu, webgpu, cuda, coreml, dml, … You can give several. If the first cannot compute an operator, the next one does. The optimizer always runs on the CPU. Default: the CPU.",
    },
    keep: {
      form: 'word',
      about: 'Whose weights the run ends with: those of the last step, or those of the best evaluation after a step.',
      words: ['last', 'best'],
      fallback: 'last',
    },
    task: {
      form: 'text',
      about:
        'The task. Default: causal-lm, to continue texts, or seq2seq for a model with an encoder and a decoder, such as T5.',
    },
    columns: {
      form: 'pairs',
      about:
        "Field of a record → its name in your data: { prompt: 'question', completion: 'answer' }. Other fields are left out.",
    },
    maxLength: {
      form: 'number',
      about: "Longer records are cut to this number of tokens. Default: the model's context.",
    },
    chatTemplate: { form: 'text', about: "Text of a chat template (Jinja). Default: the model's own." },
    chatTemplateArgs: {
      form: 'settings',
      about: 'Further variables of the chat template: { enable_thinking: false }.',
    },
    epochs: { form: 'number', about: 'Passes over the data.', fallback: '1' },
    maxSteps: { form: 'number', about: 'Number of steps of the optimizer, instead of --epochs.' },
    batchSize: { form: 'number', about: 'Records in a batch.', fallback: '8' },
    gradientAccumulation: { form: 'number', about: 'Batches in a step of the optimizer.', fallback: '1' },
    learningRate: {
      form: 'number',
      about:
        'Highest learning rate of the schedule. Some tasks have a default of their own: see docs/tasks.md. It belongs to LoRA+: see --lora-plus-ratio.',
      fallback: '3e-4',
    },
    schedule: {
      form: 'word',
      about: 'How the learning rate changes during the run.',
      words: ['cosine', 'linear', 'constant'],
      fallback: 'cosine',
    },
    warmupRatio: {
      form: 'number',
      about: 'Share of the steps, at the start, in which the learning rate rises.',
      fallback: '0.03',
    },
    loraPlusRatio: {
      form: 'number',
      about:
        'LoRA+ (Hayou et al. 2024, arXiv 2402.12354): the learning rate of B and of biases is that of all other tensors times this number. With another --learning-rate than the default, the default is 1.',
      fallback: '16',
    },
    loraFa: {
      form: 'switch',
      about:
        'LoRA-FA (Zhang et al. 2023, arXiv 2308.03303): A stays as it starts, and only B is trained. As in PEFT, the gradient of B is multiplied by (A·Aᵀ)⁻¹/s² before AdamW. Not together with DoRA.',
    },
    weightDecay: { form: 'number', about: "AdamW's weight decay, decoupled from the gradient.", fallback: '0' },
    maxGradNorm: {
      form: 'number',
      about: 'If the global norm of the gradients is larger than this, they are scaled down to it. 0 turns this off.',
      fallback: '1',
    },
    newHead: {
      form: 'switch',
      about:
        'Starts with a new head, also where the model has one that fits, and takes the labels of the data alone. Otherwise a head of the model is trained further if it gives the labels of the data.',
    },
    saveEvery: {
      form: 'number',
      about:
        'Number of steps between two saves of adapter and state. Default: saves only at the end and when interrupted.',
    },
    packing: {
      form: 'switch',
      about: 'Puts short records together into rows of --max-length tokens (512 without it). No record sees another.',
    },
    evalEvery: {
      form: 'number',
      about:
        'Number of steps between two evaluations. Needs --eval-data or --eval-split. Default: only before and after training. With --keep best or --early-stopping: after each pass over the data too.',
    },
    bestMetric: {
      form: 'text',
      about:
        'What the best evaluation is judged by: loss, or a metric of the task, such as accuracy or mrr. Lower is better for loss and perplexity, higher for all others.',
      fallback: 'loss',
    },
    earlyStopping: {
      form: 'number',
      about: 'Ends the run after this many evaluations in a row without a better one. Default: never.',
    },
    taskOptions: { form: 'settings', about: 'Settings that only this task has, such as the temperature of its loss.' },
    evalSplit: {
      form: 'number',
      about: 'Share of the records, that is used as --eval-data and not trained on. The seed decides which records.',
    },
    preset: {
      form: 'word',
      about:
        "Whose defaults count where the options and --config say nothing. peft: those of PEFT's LoraConfig and of transformers' TrainingArguments, such as rank 8, alpha 8, a learning rate of 5e-5 and 3 epochs. Default: lowrank's own.",
      words: ['peft'],
    },
    trainedTokens: {
      form: 'names',
      about:
        "Tokens whose rows of the embedding are trained too, as PEFT's trainable_token_indices: ['<tool>', 32000], or by module, { embed_tokens: ['<tool>'], lm_head: ['<tool>'] }. An output layer that is tied to the embedding uses the same rows. All tokens must have rows in the graph already. Default: none.",
    },
    resume: {
      form: 'switch',
      about: 'Continues the unfinished run in --out. The result is the same as without the stop.',
    },
    overwrite: { form: 'switch', about: 'Replaces the run in --out.' },
  },
  SaveOptions: {
    dtype: {
      form: 'word',
      about:
        'Type of the saved A and B. Default: the type of each layer (fp32, or the type of the file it was loaded from). Replaced tensors keep their type.',
      words: ['fp32', 'fp16', 'bf16'],
    },
  },
  ClassifyOptions: {
    adapter: { form: 'text', about: 'Name of an adapter of the session; null is the base model alone. Default null.' },
    topK: { form: 'number', about: 'How many labels each result lists.', fallback: '1' },
    maxLength: {
      form: 'number',
      about: "Longer texts are cut to this number of tokens. Default: the model's maximum.",
    },
    batchSize: { form: 'number', about: 'Texts in one run.', fallback: '8' },
  },
  EmbedOptions: {
    pooling: {
      form: 'word',
      about:
        'How the vectors of the tokens become one vector. Default: as 1_Pooling/config.json says, or mean without this file.',
      words: ['mean', 'cls'],
    },
    normalize: {
      form: 'switch',
      about: 'Scales vectors to length 1, so that their product is the cosine.',
      fallback: 'true',
    },
    dimensions: {
      form: 'number',
      about: 'How many numbers of each vector are kept, for models that are trained for it (Matryoshka). Default: all.',
    },
    maxLength: {
      form: 'number',
      about: "Longer texts are cut to this number of tokens. Default: the model's maximum.",
    },
    batchSize: { form: 'number', about: 'Texts in one run.', fallback: '8' },
  },
  GenerateOptions: {
    batchSize: {
      form: 'number',
      about: 'The largest number of prompts that run together. A larger number is faster and needs more memory.',
      fallback: '8',
    },
    maxNewTokens: {
      form: 'number',
      about: "The largest number of new tokens. The text also ends when the model's context is full.",
      fallback: '128',
    },
    stop: {
      form: 'names',
      about:
        'Generation ends before the first of these texts. Default: none. The answer to a chat always ends where its turn ends.',
    },
    logprobs: {
      form: 'number',
      about:
        'How many of the most likely tokens get a score at each step, in addition to the chosen token. Default: no scores.',
    },
    seed: {
      form: 'number',
      about:
        'The same seed gives the same text. With several prompts, the second has seed + 1, and so on. Default: a new random seed for each call. The result contains the seed.',
    },
    temperature: {
      form: 'number',
      about:
        '0 takes the most likely token. Default: that of generation_config.json where it samples (do_sample) or where topK, topP or minP is given, else 0.',
    },
    topK: {
      form: 'number',
      about:
        'Keep only this many most likely tokens. Default: that of generation_config.json; 50 where it samples without one; else all.',
    },
    topP: {
      form: 'number',
      about:
        'Keep the fewest most likely tokens whose probabilities sum to at least this. Default: that of generation_config.json, else 1: all.',
    },
    minP: {
      form: 'number',
      about:
        'Keep the tokens that are at least this share as likely as the most likely one. Default: that of generation_config.json, else 0: all.',
    },
    repetitionPenalty: {
      form: 'number',
      about:
        'Divides the logits of tokens that the prompt or the text holds, or multiplies them where they are below 0: above 1 they become less likely. Default: that of generation_config.json, else 1.',
    },
    chatTemplate: {
      form: 'text',
      about:
        "Text of a chat template (Jinja). Default: the template that the adapter was trained with, if it was trained on chats. Otherwise the template in the model's folder.",
    },
    chatTemplateArgs: {
      form: 'settings',
      about: 'Further variables of the template, such as { enable_thinking: false }.',
    },
  },
  TrainConfig: {
    rank: { form: 'number', about: 'Rank of A and B: the size of the adapter.', fallback: '8' },
    alpha: { form: 'number', about: 'Strength of the adapter: its change is scaled by alpha / rank.', fallback: '16' },
    dropout: {
      form: 'number',
      about: 'Probability that an input of the adapter is set to 0 in training.',
      fallback: '0',
    },
    targetModules: {
      form: 'names',
      about:
        'Module names or their last parts; a regular expression for whole names; all-linear; or default: what PEFT adapts in a model of that type.',
      fallback: 'all-linear',
    },
    init: { form: 'word', about: 'How the adapter starts.', fallback: 'kaiming-uniform' },
    seed: {
      form: 'number',
      about:
        'Seed for the initial values, dropout and the order of records. The same seed, data and machine give the same adapter.',
      fallback: '42',
    },
    excludeModules: { form: 'names', about: 'Modules that are not adapted, even if targetModules matches them.' },
    layersPattern: { form: 'names', about: "The stack's name, layers or h, when layersToTransform needs one." },
    rankPattern: {
      form: 'numbers',
      about: 'Module name or expression for its end → rank; the first key that matches counts.',
      fallback: '{}',
    },
    alphaPattern: {
      form: 'numbers',
      about: 'Module name or expression for its end → alpha; the first key that matches counts.',
      fallback: '{}',
    },
    useRslora: {
      form: 'switch',
      about:
        'rsLoRA (Kalajdzievski 2023, arXiv 2312.03732): scales by alpha / √rank, so that high ranks learn as fast as low ones.',
    },
    fanInFanOut: {
      form: 'switch',
      about: "The base stores its weights as (k, d), like GPT-2's Conv1D. No effect on the factors.",
    },
    useDora: {
      form: 'switch',
      about:
        'DoRA (Liu et al. 2024, arXiv 2402.09353): also trains the length of each row of a weight, apart from its direction. Each step is slower.',
    },
    loraBias: { form: 'switch', about: 'B has a bias.' },
    bias: {
      form: 'word',
      about: 'Biases of the base that the adapter replaces: none, all, or those of adapted modules.',
      words: ['none', 'all', 'lora_only'],
      fallback: 'none',
    },
    modulesToSave: {
      form: 'names',
      about: 'Modules that are trained and saved as a whole, by the ends of their names, such as norm or lm_head.',
      fallback: '[]',
    },
    targetParameters: {
      form: 'names',
      about:
        'Parameters to adapt that are not the weight of a linear module, mostly weights of experts: full names, or their ends after a dot.',
      fallback: '[]',
    },
    ensureWeightTying: {
      form: 'switch',
      about: 'A change of the input embedding also changes an output embedding that is tied to it, and they stay tied.',
    },
    peftFields: {
      form: 'settings',
      about: "Other fields of PEFT's file, unchanged and in PEFT's spelling. They do not change the result.",
      fallback: '{}',
    },
  },
} as const satisfies Readonly<Record<string, FlagTable>>
