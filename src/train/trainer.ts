// Trainer: model + records → adapter. Orders the data, sets the learning rate, evaluates, saves and resumes; the engine
// computes, by default in a worker, so that this thread stays free.

import type { ByteSource, Directory } from '../base/bytes.js'
import { ConfigError } from '../base/errors.js'
import { Graph } from '../graph/graph.js'
import { findLinears, type ModuleMap } from '../graph/linears.js'
import { matchTargets } from '../graph/match.js'
import type { CausalModel } from '../graph/model-folder.js'
import { checkTrainableForm } from '../graph/trainable-form.js'
import { LoraAdapter } from '../lora/adapter.js'
import { type LoraConfig, type LoraConfigInput, resolveConfig, TRAIN_DEFAULTS } from '../lora/config.js'
import { requirePlain, requirePlainConfig } from '../lora/plain.js'
import { checkRecord, type EncodedRecords, encodeRecords, loadRecords, type TextRecord } from '../text/records.js'
import type { TrainEvents, TrainReport } from './report.js'
import { checkRunFolder, type FolderUse } from './run-folder.js'
import { resolveSettings, type TrainSettings } from './settings.js'
import { trainAdapter } from './training-run.js'

/** Records, or a JSONL file of them. */
export type TrainingData = readonly TextRecord[] | ByteSource

type Optional<T> = { readonly [K in keyof T]?: T[K] | undefined }

export interface TrainerOptions extends Optional<TrainSettings> {
  readonly model: CausalModel
  readonly data: TrainingData
  /** For the loss before and after. */
  readonly evalData?: TrainingData | undefined
  /** Of the new adapter; what it leaves open is as in TRAIN_DEFAULTS. */
  readonly config?: LoraConfigInput | undefined
  /** Goes on with this adapter, whose factors it changes, instead of a new one. */
  readonly adapter?: LoraAdapter | undefined
  /** Module name → name of the node or of its weight, where the graph's own names do not tell. */
  readonly modules?: ModuleMap | undefined
  /** Where adapter, metrics and state go. Without it nothing is written. */
  readonly out?: Directory | undefined
  /** Goes on with the run in `out`: the result is that of a run which was never stopped. */
  readonly resume?: boolean | undefined
  /** Replaces the run in `out`. */
  readonly overwrite?: boolean | undefined
  /** Ends the run after the step under way: it is saved and reported as interrupted. */
  readonly signal?: AbortSignal | undefined
  readonly on?: TrainEvents | undefined
}

export interface TrainResult {
  readonly adapter: LoraAdapter
  readonly report: TrainReport
}

export class Trainer {
  readonly settings: TrainSettings
  readonly config: LoraConfig
  readonly #options: TrainerOptions

  /**
   * @throws ConfigError when a setting or the adapter's config is out of range, or two options contradict; UnsupportedError when
   *   the adapter or its config has more than plain linear layers
   */
  constructor(options: TrainerOptions) {
    this.#options = options
    this.settings = resolveSettings(options)
    if (options.adapter !== undefined && options.config !== undefined) {
      throw new ConfigError({ where: 'config', what: 'an adapter to go on with has a config of its own' })
    }
    if (options.out === undefined && (options.resume || options.overwrite || this.settings.saveEvery !== undefined)) {
      throw new ConfigError({ where: 'out', what: 'resume, overwrite and saveEvery need an output folder' })
    }
    if (options.resume && options.overwrite) {
      throw new ConfigError({ where: 'resume', what: 'a run is resumed or overwritten, not both' })
    }
    const given = Object.entries(options.config ?? {}).filter(([, value]) => value !== undefined)
    this.config =
      options.adapter?.config ??
      resolveConfig({
        ...TRAIN_DEFAULTS,
        taskType: 'CAUSAL_LM',
        baseModel: options.model.name,
        ...Object.fromEntries(given),
      })
    if (options.adapter !== undefined) requirePlain(options.adapter, 'training')
    requirePlainConfig(this.config, 'training')
  }

  /**
   * Trains. Nothing is written before the model, the data and the folder have been found usable.
   *
   * @throws DataError for records, FileError for the folder, MismatchError when no module matches or a run to resume is of
   *   other parts, UnsupportedError for graphs that cannot be trained, NumericError naming the step when the loss is not finite
   *   (the adapter is saved as it was when it last was finite)
   */
  async train(): Promise<TrainResult> {
    const startedAt = performance.now()
    const { model, out, on } = this.#options
    const use: FolderUse = this.#options.resume ? 'resume' : this.#options.overwrite ? 'overwrite' : 'new'
    if (out !== undefined) await checkRunFolder(out, use)
    on?.stage?.('encode')
    const records = await this.#encode(this.#options.data, 'data')
    const evalRecords =
      this.#options.evalData === undefined ? undefined : await this.#encode(this.#options.evalData, 'evalData')
    on?.stage?.('prepare')
    const adapter = this.#options.adapter ?? this.#newAdapter()
    const result = await trainAdapter({
      model,
      adapter,
      modules: this.#options.modules,
      settings: this.settings,
      examples: records.examples,
      evalExamples: evalRecords?.examples,
      out: out === undefined ? undefined : { directory: out, use },
      signal: this.#options.signal,
      on: on ?? {},
    })
    const { totalTrainable, totalParams } = adapter.summary()
    const report: TrainReport = {
      ...result,
      truncatedRecords: records.truncatedRecords,
      skippedRecords: records.skippedRecords,
      trainableParams: totalTrainable,
      totalParams,
      seconds: (performance.now() - startedAt) / 1000,
    }
    return { adapter, report }
  }

  async #encode(data: TrainingData, name: string): Promise<EncodedRecords> {
    const { model, on } = this.#options
    const isFile = 'read' in data
    const records = isFile ? await loadRecords(data) : data.map((record, i) => checkRecord(record, `${name}[${i}]`))
    const where = isFile ? data.name : name
    const encoded = await encodeRecords(records, {
      tokenizer: model.tokenizer,
      eosTokenId: model.eosTokenIds[0],
      vocabularySize: model.vocabularySize,
      contextLength: model.contextLength,
      maxLength: this.settings.maxLength,
      name: where,
    })
    const { truncatedRecords, skippedRecords } = encoded
    const count = (n: number) => `${n} of ${records.length} records`
    if (truncatedRecords > 0) {
      on?.warning?.(`${where}: ${count(truncatedRecords)} cut to ${encoded.maxLength} tokens`)
    }
    if (skippedRecords > 0) on?.warning?.(`${where}: ${count(skippedRecords)} left out, because they have no target`)
    return encoded
  }

  #newAdapter(): LoraAdapter {
    const graph = new Graph(this.#options.model.onnx.proto)
    checkTrainableForm(graph)
    const linears = findLinears(graph, this.#options.modules)
    const adapter = new LoraAdapter(this.config)
    for (const { name, d, k } of matchTargets(linears, this.config)) {
      if (!adapter.has(name)) adapter.addLayerOfShape(name, [d, k])
    }
    return adapter
  }
}
