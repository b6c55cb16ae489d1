// Chooses the kind of model that a merge reads and writes: a checkpoint or a graph.

import type { Place } from '../core/base/bytes.js'
import { ConfigError, FileError, UnsupportedError } from '../core/base/errors.js'
import { type DtypeChoice, defaultGraphs } from '../model/graph-file.js'
import type { MergeFormat } from './merge-report.js'

/** True for files of checkpoints. Pickles are among them, to be refused later with a better message. */
export const isCheckpointFile = (file: string) => /\.(safetensors|json|bin|pt|pth|ckpt)$/.test(file)

export interface ChosenFormat {
  readonly format: MergeFormat
  readonly graphs: readonly string[]
  readonly checkpoint: string | undefined
}

/** Without `format`, the extension of the result decides; else a folder's graph is taken, if it has one. */
export async function chooseFormat(
  { directory, file }: Place,
  out: string | undefined,
  { format: wish, dtype }: { format?: MergeFormat | undefined; dtype?: DtypeChoice | undefined },
): Promise<ChosenFormat> {
  const named = /\.(onnx|safetensors|gguf)$/.exec(out ?? '')?.[1] as MergeFormat | undefined
  if (file !== undefined) {
    const format = isCheckpointFile(file) ? 'safetensors' : file.endsWith('.gguf') ? 'gguf' : 'onnx'
    requireSame(wish, format, `the base is the file ${file}`)
    if (dtype !== undefined && format === 'onnx') {
      throw new ConfigError({ where: 'dtype', what: 'not together with the path of a graph', got: file })
    }
    return { format, graphs: format === 'onnx' ? [file] : [], checkpoint: format === 'onnx' ? undefined : file }
  }
  if (named !== undefined) requireSame(wish, named, `the result is a .${named} file`)
  if ((wish ?? named) === 'gguf') {
    throw new UnsupportedError({
      where: directory.name,
      what: 'a GGUF file can only be made from a GGUF file',
      expected: 'the path of a .gguf file as the base',
      hint: 'Merge into the checkpoint, and convert the merged model with llama.cpp',
    })
  }
  // A `dtype` chooses between graphs, so a graph is wanted.
  const isGraphWanted = (wish ?? named ?? (dtype === undefined ? undefined : 'onnx')) !== 'safetensors'
  const isSure = dtype !== undefined && isGraphWanted
  const graphs = await defaultGraphs(directory, isSure ? dtype : undefined)
  const format = wish ?? named ?? (graphs.length === 0 ? 'safetensors' : 'onnx')
  if (format === 'safetensors') return { format, graphs: [], checkpoint: undefined }
  if (graphs.length > 1 && named !== undefined) {
    throw new UnsupportedError({
      where: out!,
      what: 'the base has several graphs, which do not fit into one file',
      expected: 'a folder as the result',
      got: graphs.join(', '),
    })
  }
  if (graphs.length > 0) return { format, graphs, checkpoint: undefined }
  throw new FileError({
    where: directory.name,
    what: 'no ONNX model in this folder',
    expected: 'onnx/model.onnx or model.onnx, or onnx/encoder_model.onnx and onnx/decoder_model_merged.onnx',
    hint: 'Merge into its checkpoint (format safetensors), or take an export with an .onnx file',
  })
}

function requireSame(wish: MergeFormat | undefined, format: MergeFormat, because: string): void {
  if (wish === undefined || wish === format) return
  throw new ConfigError({
    where: 'format',
    what: `it cannot be ${wish}: ${because}`,
    expected: format,
    hint: 'Leave out `format`',
  })
}
