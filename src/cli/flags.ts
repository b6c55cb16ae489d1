// placeholder
export interface Flag {
  readonly form: string
  readonly about: string
  readonly words?: readonly string[]
  readonly fallback?: string
  readonly placeholder?: string
  readonly isRequired?: boolean
}
export type FlagTable = Readonly<Record<string, Flag>>
