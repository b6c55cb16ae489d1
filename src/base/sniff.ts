// Tells from its first bytes which kind of file a wrong file is, for error messages.

interface Source {
  readonly byteLength: number
  read(offset: number, length: number): Promise<Uint8Array>
}

interface Foreign {
  /** With its article, as in `a GGUF file`. */
  readonly name: string
  readonly hint: string
}

const TELLING_BYTES = 24

export async function sniff(source: Source): Promise<Foreign | undefined> {
  const bytes = await source.read(0, Math.min(TELLING_BYTES, source.byteLength))
  const text = String.fromCharCode(...bytes)
  if (text.startsWith('version https://git-lfs')) {
    return { name: 'a pointer of Git LFS', hint: 'Fetch the file itself: git lfs pull, or download it' }
  }
  if (text.startsWith('GGUF')) {
    return {
      name: 'a GGUF file',
      hint: 'Take the safetensors checkpoint or the ONNX export that it was made from, and convert the merged model',
    }
  }
  if (text.startsWith('\x1f\x8b')) return { name: 'a file that is compressed (gzip)', hint: 'Unpack it first' }
  if (text.startsWith('PK\x03\x04') || text.startsWith('\x80\x02')) {
    return { name: 'a file by torch.save', hint: 'Take the safetensors file that is beside it, or save as one' }
  }
  if (/^\s*<(!doctype|html|\?xml)/i.test(text)) return { name: 'a page of HTML', hint: 'Download the file itself' }
  return undefined
}
