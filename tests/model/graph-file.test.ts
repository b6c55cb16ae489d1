import { describe, expect, test } from 'vitest'
import { type DtypeChoice, MemoryDirectory } from '../../src/api/node.js'
import { findGraphs, graphDtypes } from '../../src/model/graph-file.js'

const folder = (...files: string[]) =>
  new MemoryDirectory(Object.fromEntries(files.map((file) => [file, ''])), 'org/model')
/** The names of transformers.js 4.3, src/utils/dtypes.js. */
const NAMES = {
  fp32: 'model.onnx',
  fp16: 'model_fp16.onnx',
  q8: 'model_quantized.onnx',
  int8: 'model_int8.onnx',
  uint8: 'model_uint8.onnx',
  q4: 'model_q4.onnx',
  q4f16: 'model_q4f16.onnx',
  bnb4: 'model_bnb4.onnx',
  q2: 'model_q2.onnx',
  q2f16: 'model_q2f16.onnx',
  q1: 'model_q1.onnx',
  q1f16: 'model_q1f16.onnx',
}

const findGraph = async (directory: MemoryDirectory, wanted: Parameters<typeof findGraphs>[1]) =>
  Object.values(await findGraphs(directory, wanted))[0]

describe('findGraphs', () => {
  test('takes the file that transformers.js takes', async () => {
    const all = folder(...Object.values(NAMES).map((name) => `onnx/${name}`))
    for (const [dtype, name] of Object.entries(NAMES)) {
      expect(await findGraph(all, { dtype: dtype as DtypeChoice })).toBe(`onnx/${name}`)
    }
    expect(await graphDtypes(all)).toEqual(Object.keys(NAMES))
  })

  test('looks in onnx/ first, then in the folder itself', async () => {
    expect(await findGraph(folder('model_q4.onnx', 'onnx/model_q4.onnx'), { dtype: 'q4' })).toBe('onnx/model_q4.onnx')
    expect(await findGraph(folder('model_q4.onnx'), { dtype: 'q4' })).toBe('model_q4.onnx')
  })

  test('takes what config.json says where nobody else does', async () => {
    const all = folder('onnx/model.onnx', 'onnx/model_q4f16.onnx', 'onnx/decoder_model_merged_q4.onnx')
    const config = (dtype: unknown) => ({ 'transformers.js_config': { dtype } })
    expect(await findGraph(all, { config: config('q4f16') })).toBe('onnx/model_q4f16.onnx')
    expect(await findGraph(all, { config: config('q4f16'), dtype: 'auto' })).toBe('onnx/model_q4f16.onnx')
    expect(await findGraph(all, { config: config('q4f16'), dtype: 'fp32' })).toBe('onnx/model.onnx')
    expect(await findGraph(all, { config: config({ model: 'q4f16' }) })).toBe('onnx/model_q4f16.onnx')
    for (const other of [undefined, null, 'fp12', 7, {}]) {
      expect(await findGraph(all, { config: config(other) })).toBe('onnx/model.onnx')
    }
    const dtype = { decoder_model_merged: 'q4' } as const
    const several = folder('onnx/decoder_model_merged_q4.onnx', 'onnx/decoder_model_merged.onnx')
    expect(await findGraph(several, { dtype })).toBe('onnx/decoder_model_merged_q4.onnx')
  })

  test('names the types that there are', async () => {
    const some = folder('onnx/model_fp16.onnx', 'onnx/model_quantized.onnx')
    await expect(findGraph(some, { dtype: 'q4' })).rejects.toThrow(
      'org/model: no graph in q4; expected onnx/model_q4.onnx, got fp16, q8. Choose the dtype fp16 or q8',
    )
    await expect(findGraph(some, {})).rejects.toThrow(/no graph in fp32.*Choose the dtype fp16 or q8/)
    await expect(findGraph(folder('model.safetensors'), {})).rejects.toThrow(
      /no ONNX model in this folder.*can be merged/,
    )
  })

  test('refuses a type that is none', async () => {
    const wrong = findGraph(folder('onnx/model.onnx'), { dtype: 'qp4' as DtypeChoice })
    await expect(wrong).rejects.toThrow(/^dtype: not a type in which graphs are published.*Did you mean q4\?/)
    await expect(findGraph(folder(), { dtype: 'toString' as DtypeChoice })).rejects.toMatchObject({ code: 'CONFIG' })
  })
})
