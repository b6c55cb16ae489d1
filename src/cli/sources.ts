// What commands share that name models and adapters: how sources stand in help.

/** A model: a path, a model on the Hub, or a URL. */
export const MODEL = 'DIR|FILE|ID'
/** An adapter: the same, without single files. */
export const ADAPTER = 'DIR|ID'

/** What a model that runs can be. */
export const RUNS =
  'model: an id on the Hub, a folder (config.json, tokenizer.json, onnx/model.onnx), or its .onnx file'
