// A plugin of TypeDoc. The verbs of src/api/verbs.ts are constants that have the type of a function in another file,
// so that this file loads with the first call. Their pages are pages of functions, with parameters and results.

import { Context, ReflectionKind } from 'typedoc'

export function load() {
  const { getComment } = Context.prototype
  Context.prototype.getComment = function (symbol, kind) {
    const comment = getComment.call(this, symbol, kind)
    if (kind === ReflectionKind.Variable) comment?.modifierTags.add('@function')
    return comment
  }
}
