// Python values out of a pickle. Dicts are Maps and classes are names: no value can be mistaken for a part of this
// program.

/** An integer is a bigint where a number would not be exact. */
export type PickleValue = null | boolean | number | bigint | string | PickleObject

/** Hosts derive what their globals make from it. */
export abstract class PickleObject {
  /** For messages. */
  abstract readonly kind: string
}

export class PickleTuple extends PickleObject {
  readonly kind = 'tuple'

  constructor(readonly items: readonly PickleValue[]) {
    super()
  }
}

export class PickleList extends PickleObject {
  readonly kind = 'list'
  readonly items: PickleValue[] = []
}

/** In the order of insertion. */
export class PickleDict extends PickleObject {
  readonly kind = 'dict'
  readonly entries = new Map<string | number, PickleValue>()

  /** `isOrdered`: a collections.OrderedDict, which can have attributes. */
  constructor(readonly isOrdered = false) {
    super()
  }
}

/** `call` stands for calling the class or function. */
export class PickleGlobal extends PickleObject {
  readonly kind = 'global'

  constructor(
    readonly name: string,
    readonly call?: (args: readonly PickleValue[], where: string) => PickleValue,
  ) {
    super()
  }
}
