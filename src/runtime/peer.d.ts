// The package need not be installed where this is compiled: its parts have the types of onnxruntime.ts.

declare module 'onnxruntime-web/webgpu' {
  const ort: Readonly<Record<string, unknown>>
  export = ort
}
