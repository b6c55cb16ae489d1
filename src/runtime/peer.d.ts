// Declares the package so that the project compiles without it. onnxruntime.ts has the types of its members.

declare module 'onnxruntime-web/webgpu' {
  const ort: Readonly<Record<string, unknown>>
  export = ort
}
