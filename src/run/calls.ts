// The types of `session.call`: arguments follow from the schemas of the functions.

/** A schema of zod (4.2 or newer), or of another library that follows https://standardschema.dev. */
export interface StandardSchema<Output = unknown> {
  readonly '~standard': {
    readonly version: 1
    readonly vendor: string
    validate(value: unknown): SchemaResult<Output> | Promise<SchemaResult<Output>>
    readonly types?: { readonly input: unknown; readonly output: Output } | undefined
    readonly jsonSchema?: { input(options: { target: 'draft-2020-12' }): Record<string, unknown> }
  }
}

type SchemaResult<Output> =
  | { readonly value: Output; readonly issues?: undefined }
  | { readonly issues: readonly { readonly message: string; readonly path?: readonly unknown[] | undefined }[] }

/** Functions by name, with schemas of their arguments, or a list of tools in OpenAI's form. */
export type CallTools =
  | Readonly<
      Record<string, { readonly description?: string; readonly parameters?: StandardSchema | Record<string, unknown> }>
    >
  | readonly object[]

type ArgumentsOf<Parameters> = Parameters extends { readonly '~standard': { readonly types?: infer Types } }
  ? NonNullable<Types> extends { readonly output: infer Output }
    ? Output
    : unknown
  : Readonly<Record<string, unknown>>

/** A call of one of the functions: a union by name. */
export type CallOf<Tools extends CallTools> = Tools extends readonly object[]
  ? { readonly name: string; readonly arguments: Readonly<Record<string, unknown>> }
  : {
      [Name in keyof Tools & string]: {
        readonly name: Name
        readonly arguments: ArgumentsOf<Tools[Name] extends { readonly parameters: infer P } ? P : undefined>
      }
    }[keyof Tools & string]

/** An answer to `call`. */
export interface CallAnswer<Tools extends CallTools> {
  readonly calls: readonly CallOf<Tools>[]
  /** The words beside the calls. */
  readonly text: string
  /** Calls of unknown functions, and calls whose arguments are no JSON or break the schema: as they are written. */
  readonly invalid: readonly { readonly name: string; readonly arguments: string; readonly problem: string }[]
}
