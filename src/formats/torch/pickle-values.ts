// Python values out of a pickle. Dicts are Maps and classes are names, so that no value can be mistaken for a part of
// this program.

/** A value of Python. An integer is a bigint where a number would not be exact. */
export type PickleValue = null | boolean | number | bigint | string | PickleObject

/** Whatever is no scalar. Hosts derive what their globals make from it. */
export abstract class PickleObject {
  /** Its type, for messages. */
  abstract readonly kind: string
}

/** A tuple. */
export class PickleTuple extends PickleObject {
  readonly kind = 'tuple'

  constructor(readonly items: readonly PickleValue[]) {
    super()
  }
}

/** A list. */
export class PickleList extends PickleObject {
  readonly kind = 'list'
  readonly items: PickleValue[] = []
}

/** A dict, in the order of insertion. */
export class PickleDict extends PickleObject {
  readonly kind = 'dict'
  readonly entries = new Map<string | number, PickleValue>()

  /** @param isOrdered it is a collections.OrderedDict, which can have attributes */
  constructor(readonly isOrdered = false) {
    super()
  }
}

/** A class or function by its name; `call` stands for calling it. */
export class PickleGlobal extends PickleObject {
  readonly kind = 'global'

  constructor(
    readonly name: string,
    readonly call?: (args: readonly PickleValue[], where: string) => PickleValue,
  ) {
    super()
  }
}
