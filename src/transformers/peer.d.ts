// The package need not be installed where this is compiled: its parts have the types of module.ts.

declare module '@huggingface/transformers' {
  const transformers: Readonly<Record<string, unknown>>
  export = transformers
}
