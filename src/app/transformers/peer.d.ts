// Lets this compile without the package: its parts have the types of module.ts.

declare module '@huggingface/transformers' {
  const transformers: Readonly<Record<string, unknown>>
  export = transformers
}
