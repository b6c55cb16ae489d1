// What works on files and graphs comes in chunks of its own, loaded at the first call: a page that only computes with LoRA
// layers stays small.

import type { Directory } from '../base/bytes.js'
import type { Matrix, MatrixLike } from '../base/tensor.js'
import type { OnnxModel } from '../formats/onnx/model.js'
import type { CausalModel, LoadModelOptions } from '../graph/model-folder.js'
import type { AdapterSessionOptions, AdapterSession as Session, SessionBase } from '../infer/adapter-session.js'
import type { GenerateOptions, GenerateResult } from '../infer/generate.js'
import type { LoraAdapter } from '../lora/adapter.js'
import type { CordaOptions, EvaOptions, LoraGaOptions } from '../lora/init/data-inits.js'
import type { BaseWeights } from '../lora/init/to-plain.js'
import type { LoraLayer } from '../lora/layer.js'
import type { MergeCheckpointOptions } from '../merge/chunks/merge-checkpoint.js'
import type { Differences, UnmergeOptions, UnmergeReport } from '../merge/chunks/unmerge.js'
import type { ConvertOptions } from '../merge/convert.js'
import type { MergeOnnxOptions } from '../merge/onnx/merge-onnx.js'
import type { MergeReport } from '../merge/report.js'
import type { AdapterInput } from '../merge/weighted.js'
import type { LoadOptions, SaveOptions } from '../peft/adapter-folder.js'

/**
 * Opens a model folder as transformers.js reads it: config.json, tokenizer.json, onnx/model.onnx. Weights stay in their
 * file.
 *
 * @throws FileError when a part is missing, FormatError when one cannot be read
 */
export async function loadModel(directory: Directory, options: LoadModelOptions): Promise<CausalModel> {
  return (await import('../graph/model-folder.js')).loadModel(directory, options)
}

/**
 * Reads an ONNX file's graph; its weights stay where they are, in the file or in its external data.
 *
 * @throws FileError when it is missing, FormatError when it is no ONNX file
 */
export async function loadOnnx(directory: Directory, path: string): Promise<OnnxModel> {
  return (await import('../formats/onnx/model.js')).loadOnnx(directory, path)
}

/**
 * Reads a PEFT adapter folder. Factors are f32, each layer's `dtype` is the file's, layers have no base weight and are in
 * evaluation mode. Ranks above min(d, k) are fine.
 *
 * Older spellings of tensor names are read, and listed in the adapter's `notes`. An adapter_model.bin is read where there is no
 * safetensors file; nothing in it is executed.
 *
 * @throws FileError when a file is missing, or the folder holds several adapters and none is named; FormatError when one is corrupt
 *   or holds a tensor that no layer claims or half a pair; ConfigError when a value of the config is out of range or missing;
 *   UnsupportedError when the config or a tensor means something that is not implemented; MismatchError when the config's
 *   target_modules leave a tensor out, the file has no adapter of that name, or with `strict` a setting matches nothing; ShapeError
 *   when a shape disagrees with the config's rank; NumericError when a value is not finite. Each names the file, and the field or tensor.
 */
export async function loadAdapter(directory: Directory, options?: LoadOptions): Promise<LoraAdapter> {
  return (await import('../peft/adapter-folder.js')).loadAdapter(directory, options)
}

/**
 * Writes a folder that PEFT loads. Both files are complete before either gets its name, and no interruption leaves the weights of one
 * adapter beside the config of another: then the folder has no config, or all of one of them. target_modules name exactly the adapter's
 * layers where the config's own would not.
 *
 * @throws StateError when there is no layer; ConfigError when `dtype` is none of F32, F16 and BF16; NumericError when a value is not finite, or not in the type it is saved in;
 *   MismatchError when the config excludes a layer; FileError when the folder cannot be written.
 */
export async function saveAdapter(adapter: LoraAdapter, directory: Directory, options?: SaveOptions): Promise<void> {
  return (await import('../peft/adapter-folder.js')).saveAdapter(adapter, directory, options)
}

/**
 * LoRA-GA (Wang et al. 2024, arXiv 2407.05000): A and B from the singular vectors of the loss's gradient by W (d, k), and
 * W − s·B·A for the base weight, so that the effective weight stays. In place; again with another gradient starts anew.
 *
 * @throws ConfigError when the layer's init is not `lora-ga` or 2r is above min(d, k); StateError without a base weight or while
 *   merged; ShapeError when the gradient is not (d, k)
 */
export async function loraGaInitialize(layer: LoraLayer, gradient: MatrixLike, options?: LoraGaOptions): Promise<void> {
  return (await import('../lora/init/data-inits.js')).loraGaInitialize(layer, gradient, options)
}

/**
 * CorDA (Yang et al. 2024, arXiv 2406.05223): the singular triples U·S·Vᵀ of W·C, of which Uᵣ·Uᵣᵀ·W moves into B·A. In place.
 *
 * @param covariance C (k, k) of the layer's inputs: Σ xᵀ·x over batches x (n, k), in PEFT each divided by its largest value
 *   before, over the number of batches. Its size only moves weight between A and B.
 * @throws ConfigError when the layer's init is not `corda`; StateError without a base weight or while merged; ShapeError when the
 *   covariance is not (k, k)
 */
export async function cordaInitialize(layer: LoraLayer, covariance: MatrixLike, options?: CordaOptions): Promise<void> {
  return (await import('../lora/init/data-inits.js')).cordaInitialize(layer, covariance, options)
}

/**
 * LoftQ (Li et al. 2023, arXiv 2310.08659): a quantised weight Q in the place of the layer's W (d, k), and in B·A what is nearest to
 * the loss: Q and s·B·A are found in turns, Q = quantize(W − s·B·A) and s·B·A = SVDᵣ(W − Q). In place. As plain LoRA the factors belong
 * to the quantised base. PEFT does not divide by s; the two agree where s = 1.
 *
 * @param quantize a weight (d, k) → what its quantised form stands for; for a base that is quantised already, `() => Q`
 * @param options iterations: how often; 1 where Q is given. Default 1.
 * @throws ConfigError when iterations is not an integer above 0, or the layer's init takes from the base itself;
 *   StateError without a base weight or while merged; ShapeError when Q is not (d, k)
 */
export async function loftqInitialize(
  layer: LoraLayer,
  quantize: (weight: Matrix) => MatrixLike,
  options?: { iterations?: number },
): Promise<void> {
  return (await import('../lora/init/data-inits.js')).loftqInitialize(layer, quantize, options)
}

/**
 * EVA (Paischer et al. 2024, arXiv 2410.07170): a new adapter whose A hold the principal directions of the layers' inputs, B zero,
 * and whose ranks went to where they explain most, in sum as before. Layers without inputs start as `kaiming-uniform`; layers
 * that get no rank are left out. Base weights are taken along.
 *
 * @param inputs layer name → what went into the layer (n, k), in any order; a layer at a time is held
 * @throws ConfigError when ρ is below 1; MismatchError for a name that is no layer's; ShapeError when inputs are not (n, k), or
 *   fewer rows than ρ·r; UnsupportedError when the adapter has more than plain linear layers
 */
export async function evaInitialize(
  adapter: LoraAdapter,
  inputs: Iterable<readonly [name: string, inputs: MatrixLike]>,
  options?: EvaOptions,
): Promise<LoraAdapter> {
  return (await import('../lora/init/data-inits.js')).evaInitialize(adapter, inputs, options)
}

/**
 * A plain adapter of twice the rank that changes the original base as `adapter`, which started as pissa or olora, changes its own:
 * A' = [A; A₀], B' = [B, −B₀].
 *
 * Of pissa-niter-N the start was random: PEFT finds another whenever it loads the adapter, and here too the result differs by as
 * much, unless the adapter before training is given.
 *
 * @param from the folder of the original checkpoint in safetensors, or a function that gives its weights, of which only one is held
 *   at a time; or the adapter as it was before training, which lora-ga and corda need
 * @throws FileError or FormatError for the checkpoint; ConfigError when the adapter is plain already; UnsupportedError when the
 *   weights do not tell its start, and for convolutions and parameters; MismatchError when a layer has no weight or another shape
 */
export async function convertToPlain(
  adapter: LoraAdapter,
  from: Directory | BaseWeights | LoraAdapter,
  options?: ConvertOptions,
): Promise<LoraAdapter> {
  return (await import('../merge/convert.js')).convertToPlain(adapter, from, options)
}

/** One base model in memory, many adapters, chosen by each run. */
export type AdapterSession<M extends SessionBase = SessionBase> = Session<M>

/** Opens {@link AdapterSession}s. */
export const AdapterSession = {
  /**
   * Opens the model's session: in a worker, or in this thread if the model's runtime is a module object.
   *
   * @throws MismatchError when an adapter does not fit the model, RuntimeError when ONNX Runtime cannot be found or
   *   cannot open the model
   */
  async open<M extends SessionBase>(model: M, options?: AdapterSessionOptions): Promise<AdapterSession<M>> {
    return (await import('../infer/adapter-session.js')).AdapterSession.open(model, options)
  },
}

/**
 * Continues a prompt with the session's model, by default with the likeliest token each time.
 *
 * @throws ConfigError for an option out of range, MismatchError for an unknown adapter, DataError for a prompt without
 *   tokens or one that fills the context
 */
export async function generate(
  session: AdapterSession<CausalModel>,
  prompt: string,
  options?: GenerateOptions,
): Promise<GenerateResult> {
  return (await import('../infer/generate.js')).generate(session, prompt, options)
}

/**
 * Writes the model with Σ wᵢ·sᵢ·Bᵢ·Aᵢ added to each adapted weight: f32 accumulation, one rounding. Adapters of every kind but
 * adapted parameters are merged; what cannot be found in the graph for certain is refused by name.
 *
 * @throws MismatchError when a layer has no weight in the model, UnsupportedError naming what cannot be merged, NumericError when a
 *   result is not finite
 */
export async function mergeOnnx(
  model: OnnxModel,
  adapters: AdapterInput | readonly AdapterInput[],
  out: Directory,
  options?: MergeOnnxOptions,
): Promise<MergeReport> {
  return (await import('../merge/onnx/merge-onnx.js')).mergeOnnx(model, adapters, out, options)
}

/**
 * Writes a safetensors checkpoint, one file or a sharded folder, with Σ wᵢ·sᵢ·Bᵢ·Aᵢ added to each adapted weight.
 *
 * @throws MismatchError when a layer has no tensor or another shape there, NumericError when a result is not finite
 */
export async function mergeCheckpoint(
  base: Directory,
  adapters: AdapterInput | readonly AdapterInput[],
  out: Directory,
  options?: MergeCheckpointOptions,
): Promise<MergeReport> {
  return (await import('../merge/chunks/merge-checkpoint.js')).mergeCheckpoint(base, adapters, out, options)
}

/**
 * Writes the base back, given a merged checkpoint and what was merged into it. Exact in f32 up to rounding; bf16 and f16
 * cannot be: with `original` the report counts the values that differ.
 *
 * @throws what {@link mergeCheckpoint} throws
 */
export async function unmergeCheckpoint(
  merged: Directory,
  adapters: AdapterInput | readonly AdapterInput[],
  out: Directory,
  options?: UnmergeOptions,
): Promise<UnmergeReport> {
  return (await import('../merge/chunks/unmerge.js')).unmergeCheckpoint(merged, adapters, out, options)
}

/** How many values of two checkpoints of the same tensors differ. */
export async function compareCheckpoints(
  one: Directory,
  other: Directory,
  onePath?: string,
  otherPath?: string,
): Promise<Differences> {
  return (await import('../merge/chunks/unmerge.js')).compareCheckpoints(one, other, onePath, otherPath)
}
