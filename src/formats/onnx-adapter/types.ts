// Element types of .onnx_adapter files, by ONNX's numbers.

import type { FloatDtype } from '../../base/dtype.js'

export type OnnxAdapterDtype = FloatDtype

export const DATA_TYPES: Readonly<Record<OnnxAdapterDtype, { readonly number: number; readonly bytes: number }>> = {
  fp32: { number: 1, bytes: 4 },
  fp16: { number: 10, bytes: 2 },
  bf16: { number: 16, bytes: 2 },
}

export function dtypeOf(number: number): OnnxAdapterDtype | undefined {
  return (Object.keys(DATA_TYPES) as OnnxAdapterDtype[]).find((dtype) => DATA_TYPES[dtype].number === number)
}
