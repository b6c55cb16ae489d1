// Writes the files of a planned .onnx model, with given bytes in place of some weights.

import type { Directory, OnnxModel } from '../../../src/api/node.js'
import { writeThrough } from '../../../src/core/base/bytes.js'
import type { ModelProto } from '../../../src/onnx/format/gen/onnx_pb.js'
import { type OnnxLayout, planOnnx } from '../../../src/onnx/format/layout.js'

/** @returns the paths of the files, the graph's last */
export async function writeOnnx(
  model: OnnxModel,
  proto: ModelProto,
  directory: Directory,
  path: string,
  { contents = new Map(), ...layout }: Omit<OnnxLayout, 'replaced'> & { contents?: Map<string, Uint8Array> } = {},
): Promise<string[]> {
  const files = await planOnnx(model, proto, path, { ...layout, replaced: new Set(contents.keys()) })
  for (const { path: own, pieces } of files) {
    await writeThrough(directory, own, async (sink) => {
      for (const piece of pieces) {
        if ('bytes' in piece) await sink.write(piece.bytes)
        else if ('replaced' in piece) await sink.write(contents.get(piece.replaced)!)
        else await sink.write(await model.file(piece.location).read(piece.from, piece.byteLength))
      }
    })
  }
  return files.map((file) => file.path)
}
