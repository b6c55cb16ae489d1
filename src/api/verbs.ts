// The public functions. Each loads its code with its first call, so that a page that only uses LoraLayer stays small.

import { isObject } from '../core/base/options.js'
import type { TrainOptions } from '../train/options.js'
import { followRun, type TrainRun } from './follow-run.js'

/**
 * Opens a model. The source is an id on the Hub, a model folder (config.json, tokenizer.json, onnx/model.onnx), or an
 * .onnx file. lowrank reads the weights from their file when it needs them. Call `close()` when you no longer need the
 * model.
 *
 * @throws FileError when a file is missing or cannot be downloaded, FormatError when a file cannot be read,
 *   RuntimeError without onnxruntime-node, ConfigError for a source or an option that is not valid
 *
 * @example
 * const model = await loadModel('models/union-3m')
 * console.log(model.name, model.contextLength)
 * await model.close()
 */
export const loadModel: typeof import('./model.js').loadModel = async (...given) =>
  (await import('./model.js')).loadModel(...given)

/**
 * Reads a PEFT adapter folder. The factors A and B are converted to f32. Each layer's `dtype` is the type in the file.
 * Layers have no base weight. They are in evaluation mode (no dropout). Ranks above min(d, k) are allowed.
 *
 * Older spellings of tensor names are read, and listed in the adapter's `notes`.
 * adapter_model.bin, a pickle, is refused: the error has the line of Python that converts it.
 *
 * @throws FileError when a file is missing, or the folder holds several adapters and none is named; FormatError when a
 *   file is corrupt, when no layer uses one of its tensors, or when A has no B; ConfigError when a value of the config
 *   is out of range or missing, or an argument is not valid; UnsupportedError when the config or a tensor means
 *   something that is not implemented; MismatchError when the config's target_modules leave a tensor out, or the file
 *   has no adapter of that name; ShapeError when a shape disagrees with the config's rank; NumericError when a value is
 *   not finite. Each names the file, and the field or tensor.
 *
 * @example
 * const adapter = await loadAdapter('tests/golden/peft/f32')
 * for (const { name, kind, shape } of adapter.parts()) console.log(name, kind, shape)
 */
export const loadAdapter: typeof import('./adapters.js').loadAdapter = async (...given) =>
  (await import('./adapters.js')).loadAdapter(...given)

/**
 * Writes a folder that PEFT loads. Both files are complete before either gets its name. An interrupted save leaves a
 * whole adapter or a folder without a config, never a mixture of two adapters. If `targetModules` does not match the
 * adapter's layers, the saved config lists the names of the layers instead.
 *
 * @throws StateError when the adapter has no layers; ConfigError when `dtype` is not fp32, fp16 or bf16, or an argument
 *   is not valid; NumericError when a value is not finite, or would not be finite in the type of the file;
 *   MismatchError when the config excludes a layer; FileError when the folder cannot be written, or has an adapter that
 *   this process did not write and `overwrite` is not set.
 *
 * @example
 * const adapter = await loadAdapter('tests/golden/peft/f32')
 * await saveAdapter(adapter, 'out/half', { dtype: 'fp16' })
 */
export const saveAdapter: typeof import('./adapters.js').saveAdapter = async (...given) =>
  (await import('./adapters.js')).saveAdapter(...given)

/**
 * Trains an adapter. It checks the model, the data and the folder before it writes anything. `await` gives the result.
 * `for await` over the returned run gives its events, `pause()` stops it between two steps, and `resume()` goes on.
 *
 * @throws ConfigError when an option is unknown or out of range, contradicts another option, or needs an option that is
 *   missing, and when PEFT has no default modules for the model; DataError for records that are not valid, FileError
 *   when `out` cannot be used or a path does not exist, MismatchError when no module matches, or when the run in `out`
 *   has other options, data or weights, UnsupportedError for graphs that cannot be trained and adapters with more than
 *   linear layers and DoRA, StateError when `adapter` is merged or has no layers, NumericError with the number of the
 *   step when the loss is not finite. The last adapter with a finite loss is saved. After the first step, each error
 *   has the trained adapter as `adapter`
 *
 * @example
 * const { adapter, report } = await train({
 *   model: 'models/union-3m',
 *   data: [{ prompt: 'Who is it? ', completion: 'It is the captain.' }],
 *   config: { rank: 4 },
 *   maxSteps: 2,
 * })
 * console.log(adapter.size, report.trainLoss)
 */
export function train(options: TrainOptions): TrainRun {
  const given: unknown = options
  return followRun(isObject(given) ? given.on : undefined, async ({ on, wait }) => {
    const { train } = await import('./open-run.js')
    return train(isObject(given) ? { ...options, on: on as TrainOptions['on'] } : options, wait)
  })
}

/**
 * Opens a trainer: the steps of training as calls, for loops of your own. `forwardBackward` takes examples and any
 * loss, `step` changes the adapter, `sample` writes texts with it as it is, and `save` gives it back. It needs a causal
 * language model. docs/trainer.md explains the losses.
 *
 * @param model an open model, or any source that {@link loadModel} accepts. `dispose` closes the model only if the
 *   trainer opened it
 * @throws as {@link train} does for model and options; MismatchError when the state in `resume` belongs to another
 *   trainer
 *
 * @example
 * const trainer = await openTrainer('models/union-3m', { config: { rank: 4 } })
 * for (let i = 0; i < 2; i++) {
 *   const texts = (await trainer.sample(['And the people'], { n: 4, maxNewTokens: 8 })).flat()
 *   const examples = texts.map((sample) => ({ ...sample, advantages: sample.text.length > 20 ? 1 : -1 }))
 *   const { loss } = await trainer.forwardBackward(examples, { loss: 'ppo' })
 *   const { gradientNorm } = await trainer.step({ learningRate: 1e-3 })
 *   console.log(loss, gradientNorm)
 * }
 * await trainer.save('out/rewarded')
 * await trainer.dispose()
 */
export const openTrainer: typeof import('./open-trainer.js').openTrainer = async (...given) =>
  (await import('./open-trainer.js')).openTrainer(...given)

/**
 * The tasks that a model can be trained for: what each learns, its records, and how its adapters are run. Without a
 * model, all tasks.
 *
 * @throws ConfigError when `model` is not an open model
 *
 * @example
 * for (const { name, learns, records } of await trainingTasks()) console.log(name, learns, Object.keys(records[0]))
 */
export const trainingTasks: typeof import('./open-run.js').trainingTasks = async (...given) =>
  (await import('./open-run.js')).trainingTasks(...given)

/**
 * Reads data as training would, and reports the task that fits, lengths, labels, duplicates, and records that cannot be
 * used; with `preview` also the tokens of the first examples, and which of them count in the loss. Trains nothing.
 * Texts are not kept in memory: each record takes 16 bytes.
 *
 * @throws the errors of {@link train} for model and options. Problems of records are in the report
 *
 * @example
 * const { task, invalid, examples } = await checkData({
 *   model: 'models/union-3m',
 *   data: [{ prompt: 'Who is it? ', completion: 'It is the captain.' }],
 *   preview: 1,
 * })
 * console.log(task, invalid.length, examples[0].tokens.filter(({ counts }) => counts).map(({ text }) => text))
 */
export const checkData: typeof import('./open-run.js').checkData = async (...given) =>
  (await import('./open-run.js')).checkData(...given)

/**
 * Opens a session: a model with adapters. It runs in a worker. If the model's runtime is a module object, it runs in
 * this thread. You choose an adapter for each run. All adapters share one copy of the base.
 *
 * @param model an open model, or any source that {@link loadModel} accepts. `dispose` closes the model only if the
 *   session opened it
 * @throws MismatchError when an adapter does not fit the model, RuntimeError when ONNX Runtime cannot be found or
 *   cannot open the model, ConfigError for an option that is unknown or not valid; what {@link loadModel} and {@link
 *   loadAdapter} throw
 *
 * @example
 * const session = await openSession('models/union-3m', { adapters: { peft: 'tests/golden/peft/f32' } })
 * for await (const piece of session.stream('And the people', { adapter: 'peft', maxNewTokens: 20 })) console.log(piece)
 * await session.dispose()
 */
export const openSession: typeof import('./session.js').openSession = async (...given) =>
  (await import('./session.js')).openSession(...given)

/**
 * Writes a copy of a model with adapters inside: W + Σ weight · s·B·A for every weight that an adapter changes, rounded
 * once to the stored type. All other tensors are copied byte for byte. The files of the result appear together, or not
 * at all. Without `format`, the result is an .onnx file if the base's folder has one, else a checkpoint.
 *
 * @throws ConfigError for an option that is unknown or not valid; FileError when a path does not exist, when `out` is
 *   not empty, or when `out` is the folder of the base; FormatError when a file is damaged; MismatchError when an
 *   adapter does not fit; UnsupportedError naming what cannot be merged, or an option that
 *   does not work with the format; NumericError naming the tensor when a value is not finite
 *
 * @example
 * const report = await merge({ base: 'models/union-3m', adapters: 'tests/golden/peft/f32', out: 'out/with-adapter' })
 * console.log(`${report.changed} of ${report.tensors} tensors changed`)
 */
export const merge: typeof import('./merge.js').merge = async (...given) => (await import('./merge.js')).merge(...given)

/**
 * Shows what {@link merge} would do, and writes nothing. It throws the errors of `merge`, except those for values that
 * are not finite.
 *
 * @example
 * const plan = await planMerge({ base: 'models/union-3m', adapters: 'tests/golden/peft/f32', out: 'out/planned' })
 * console.log(plan.bytes, plan.layers.length)
 */
export const planMerge: typeof import('./merge.js').planMerge = async (...given) =>
  (await import('./merge.js')).planMerge(...given)

/**
 * Removes adapters from a merged model and writes the base again. Give the merged adapters with their weights. In f32,
 * only the last digits can differ. In bf16 and f16, more values differ, because the merge rounded them.
 *
 * @throws what {@link merge} throws; UnsupportedError if an adapter replaces values of the base
 *
 * @example
 * const adapters = 'tests/golden/peft/f32'
 * await merge({ base: 'models/union-3m', adapters, out: 'out/merged-once', format: 'safetensors' })
 * const report = await unmerge({ merged: 'out/merged-once', adapters, out: 'out/base' })
 * console.log(report.changed, report.bytes)
 */
export const unmerge: typeof import('./merge.js').unmerge = async (...given) =>
  (await import('./merge.js')).unmerge(...given)

/**
 * Shows what is in an adapter folder, a safetensors file or checkpoint, an .onnx file, a folder with one of them, or an
 * adapter in memory. If an adapter cannot be loaded, the report lists all its problems and its valid parts.
 *
 * @throws FileError when the source does not exist or is of another kind; FormatError when it is damaged; ConfigError
 *   when a value of an adapter's config is out of range, or when the source is a model and an option is only for
 *   adapters; UnsupportedError for an adapter that is not LoRA
 *
 * @example
 * const report = await inspect('tests/golden/peft/f32', { base: 'models/union-3m' })
 * if (report.kind === 'adapter') console.log(report.layers.length, report.problems, report.fit?.fits)
 */
export const inspect: typeof import('./inspect.js').inspect = async (...given) =>
  (await import('./inspect.js')).inspect(...given)

/**
 * Turns an adapter that started as PiSSA, OLoRA, LoRA-GA or CorDA into plain LoRA of twice the rank: A' = [A; A₀], B' =
 * [B, −B₀]. These methods change the base before training, so the adapter fits only the changed base. The plain adapter
 * fits the original base, and can be merged and swapped like any other.
 *
 * The initial values of `pissa-niter-N` are random, and no file contains them. So such an adapter needs `initial`.
 *
 * @throws FileError or FormatError when base or adapter cannot be read; ConfigError when the adapter is plain already,
 *   or when both
 *   or neither of `base` and `initial` are given; UnsupportedError when the initial values cannot be computed from the
 *   base weights, and for convolutions and parameters; MismatchError when a layer has no weight or another shape
 *
 * @example
 * const plain = await toPlain('tests/golden/peft/pissa', { base: 'models/union-3m' })
 * await saveAdapter(plain, 'out/plain')
 */
export const toPlain: typeof import('./adapters.js').toPlain = async (...given) =>
  (await import('./adapters.js')).toPlain(...given)

/**
 * Makes one adapter from several adapters of the same base. By default, its change is exactly the weighted sum Σ
 * weight·s·B·A. The adapters may use rsLoRA and patterns, and may have different ranks and layers. With `rank`,
 * `energy` it is the closest change of a lower rank. `combinationType` chooses TIES, DARE or the
 * sum of the factors instead.
 *
 * lowrank reads adapters in folders one layer at a time. It works on the factors, and makes no matrix as large as a
 * weight.
 *
 * @throws ConfigError for an option that is unknown, not valid or not used by the combination type, and for layers of
 *   different ranks where factors are added; MismatchError when the adapters belong to different bases;
 *   UnsupportedError for DoRA, for adapters whose initial values changed their base, and for replaced
 *   tensors that cannot be added; what {@link loadAdapter} throws
 *
 * @example
 * const { adapter, error } = await combine({
 *   adapters: ['tests/golden/peft/f32', { adapter: 'tests/golden/peft/rslora', weight: -0.5 }],
 *   rank: 8,
 * })
 * await saveAdapter(adapter, 'out/combined')
 * console.log(`${(100 * error).toFixed(2)} % of the change is lost`)
 */
export const combine: typeof import('./tools.js').combine = async (...given) =>
  (await import('./tools.js')).combine(...given)

/**
 * Gives an adapter a lower rank. The result is the closest change of that rank. It comes from the singular values of
 * each layer's s·B·A, which lowrank computes exactly. `energy` chooses a rank for each layer. The
 * result has alpha = rank in all layers.
 *
 * @throws ConfigError for an option that is unknown or not valid, and when no rule is given; UnsupportedError for an
 *   adapter whose initial values
 *   changed its base; StateError for an adapter without ranks; what {@link loadAdapter} throws
 *
 * @example
 * const { adapter, layers } = await resize('tests/golden/peft/f32', { energy: 0.95 })
 * await saveAdapter(adapter, 'out/smaller')
 * for (const { name, fromRank, rank, error } of layers) console.log(name, fromRank, rank, error)
 */
export const resize: typeof import('./tools.js').resize = async (...given) =>
  (await import('./tools.js')).resize(...given)

/**
 * Writes an adapter in another format: PEFT's folder, a GGUF file for llama.cpp, or a folder for mlx-lm.
 * The source is a folder of PEFT or mlx-lm. The result changes the base in the same way
 * as the source: scalings of rsLoRA and patterns are written in the way that the format has for them, and the rows of q
 * and k get llama.cpp's order.
 *
 * @throws UnsupportedError naming what the format cannot hold, such as DoRA in GGUF, and for models that llama.cpp does
 *   not have; MismatchError when the adapter does not fit the base; FormatError for a damaged source; FileError when
 *   the result exists already; ConfigError for an option that is unknown or not usable, and for GGUF without `base`
 *
 * @example
 * const { layers, notes } = await convertAdapter('tests/golden/peft/f32', {
 *   to: 'gguf',
 *   base: 'models/union-3m',
 *   out: 'out/adapter-for-llama.gguf',
 * })
 * console.log(layers, notes)
 */
export const convertAdapter: typeof import('./tools.js').convertAdapter = async (...given) =>
  (await import('./tools.js')).convertAdapter(...given)

/**
 * Measures finished adapters on records. The report has the task's metrics for the base and for each adapter with 95 %
 * intervals (bootstrap over the records), the paired difference to the base, and the records that differ most. The
 * metrics are computed as in an evaluation during `train`. With `generate`, the models also answer the records, and the
 * answers are compared with the wanted answers.
 *
 * If the base has no head for the labels, it is left out, and differences are to the first adapter.
 *
 * @throws DataError for records that the task cannot use, or with labels that an adapter does not give; MismatchError
 *   when an adapter does not fit the model; UnsupportedError for a model that is not one for the task; what {@link
 *   loadAdapter} and {@link loadModel} throw
 *
 * @example
 * const { models } = await evaluate({
 *   model: 'models/union-3m',
 *   adapters: { peft: 'tests/golden/peft/f32' },
 *   data: [{ text: 'The sea was calm.' }, { text: 'And the people went out.' }],
 * })
 * for (const { name, metrics, differences } of models) console.log(name ?? 'base', metrics.loss, differences?.loss)
 */
export const evaluate: typeof import('./evaluation.js').evaluate = async (...given) =>
  (await import('./evaluation.js')).evaluate(...given)

/**
 * Mines negatives for pairs of questions and documents: documents of the corpus that look like answers and are none, as
 * `mine_hard_negatives` of sentence-transformers finds them. The records train embeddings and rerankers. Documents of
 * questions that are held out are never negatives.
 *
 * @throws ConfigError for an option that is unknown or not valid, DataError for pairs and documents that cannot be
 *   used; what {@link loadModel} and {@link loadAdapter} throw
 *
 * @example
 * const data = [{ query: 'How was the sea?', passage: 'It was calm.' }]
 * const corpus = [{ id: 'a', text: 'The king was calm.' }, { id: 'b', text: 'A day at sea.' }]
 * const model = 'tests/golden/text-classification/encoder'
 * const { records } = await mineNegatives({ model, data, corpus, numNegatives: 1 })
 * console.log(records)
 */
export const mineNegatives: typeof import('./evaluation.js').mineNegatives = async (...given) =>
  (await import('./evaluation.js')).mineNegatives(...given)

/**
 * Shows how two adapters differ: norms, the cosine of both changes, and the layers that differ most.
 *
 * @throws MismatchError when a layer does not have the same shape in both; what {@link loadAdapter} throws
 *
 * @example
 * const report = await diff('tests/golden/peft/f32', 'tests/golden/peft/bf16')
 * console.log(report.relativeChange, report.topMovers, report.layers[0].cosine)
 */
export const diff: typeof import('./tools.js').diff = async (...given) => (await import('./tools.js')).diff(...given)
