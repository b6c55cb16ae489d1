// Types of globals in browsers and Node. If a project does not declare a global, its type here lists only the members
// that we use.

/** The instances of a global class. */
type Instance<Name extends string, Otherwise> = typeof globalThis extends { [K in Name]: { prototype: infer T } }
  ? T
  : Otherwise

/** An AbortSignal. */
export type SignalLike = Instance<
  'AbortSignal',
  { readonly aborted: boolean; readonly reason?: unknown; throwIfAborted(): void }
>

/** A Blob. */
export type BlobLike = Instance<'Blob', { readonly size: number; arrayBuffer(): Promise<ArrayBuffer> }>

/** A File. */
export type FileLike = Instance<
  'File',
  { readonly name: string; readonly size: number; arrayBuffer(): Promise<ArrayBuffer> }
>

/** A WritableStream, here of bytes. */
export type ByteStreamLike = Instance<
  'WritableStream',
  { getWriter(): { write(bytes: Uint8Array): Promise<void>; close(): Promise<void>; abort(): Promise<void> } }
>

/** A FileSystemDirectoryHandle. It is `never` in projects without its declaration. */
export type FolderHandle = Instance<'FileSystemDirectoryHandle', never>

export type ResponseLike = Instance<'Response', never>

export type FetchLike = typeof globalThis extends { fetch: infer F } ? F : never

export type UrlLike = Instance<'URL', { readonly href: string }>
