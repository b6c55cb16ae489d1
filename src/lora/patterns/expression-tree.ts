// The tree of a regular expression.

/** One character: true for a code point that it stands for. */
export type CharacterTest = (code: number) => boolean

/** A parsed expression. */
export type Expression =
  /** `code` where it stands for one character alone. */
  | { readonly kind: 'character'; readonly test: CharacterTest; readonly code?: number }
  | { readonly kind: 'sequence'; readonly items: readonly Expression[] }
  | { readonly kind: 'choice'; readonly options: readonly Expression[] }
  | {
      readonly kind: 'repeat'
      readonly item: Expression
      readonly min: number
      readonly max: number
      readonly isLazy: boolean
    }
  | { readonly kind: 'group'; readonly number: number; readonly item: Expression }
  | { readonly kind: 'reference'; readonly number: number; readonly isCaseless: boolean }
  | { readonly kind: 'position'; readonly test: (text: readonly number[], at: number) => boolean }
  | { readonly kind: 'look'; readonly item: Expression; readonly isBehind: boolean; readonly isNegative: boolean }
