// Reads what the tests wrote: GGUF files, without checks.

const TYPES = { 0: ['F32', 4], 1: ['F16', 2], 8: ['Q8_0', 34 / 32], 30: ['BF16', 2] } as const

export interface ReadTensor {
  shape: number[]
  type: string
  bytes: Uint8Array
}

export function readGguf(file: Uint8Array) {
  const view = new DataView(file.buffer, file.byteOffset, file.byteLength)
  let at = 8
  /** Moves on, and returns where the bytes begin. */
  const skip = (bytes: number) => {
    at += bytes
    return at - bytes
  }
  const u32 = () => view.getUint32(skip(4), true)
  const size = () => Number(view.getBigUint64(skip(8), true))
  const string = () => {
    const start = skip(size())
    return new TextDecoder().decode(file.subarray(start, at))
  }
  const value = (type: number): unknown => {
    if (type === 8) return string()
    if (type === 9) {
      const [of, length] = [u32(), size()]
      return Array.from({ length }, () => value(of))
    }
    if (type === 6) return view.getFloat32(skip(4), true)
    if (type === 7) return view.getUint8(skip(1)) !== 0
    return type === 10 ? size() : u32()
  }
  const [tensorCount, valueCount] = [size(), size()]
  const metadata = new Map<string, unknown>()
  for (let i = 0; i < valueCount; i++) metadata.set(string(), value(u32()))
  const found = Array.from({ length: tensorCount }, () => {
    const name = string()
    const shape = Array.from({ length: u32() }, size).reverse()
    const [type, bytes] = TYPES[u32() as keyof typeof TYPES]
    return { name, shape, type, start: size(), byteLength: shape.reduce((a, b) => a * b, 1) * bytes }
  })
  const data = Math.ceil(at / 32) * 32
  const tensors = found.map(({ name, shape, type, start, byteLength }): [string, ReadTensor] => {
    return [name, { shape, type, bytes: file.slice(data + start, data + start + byteLength) }]
  })
  return { metadata, tensors: new Map(tensors) }
}
