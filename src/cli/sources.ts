// Names of sources in help, for all commands that take models and adapters.

/** A path, a model on the Hub, or a URL. */
export const MODEL = 'DIR|FILE|ID'
/** As MODEL, without single files. */
export const ADAPTER = 'DIR|ID'

export const RUNS =
  'model: an id on the Hub, a folder (config.json, tokenizer.json, onnx/model.onnx), or its .onnx file'
