// Decides what a path in a repository or on a server means: a folder, or a file and the folder that it belongs to.

import { type Directory, type Place, splitName } from '../../core/base/bytes.js'
import { FileError } from '../../core/base/errors.js'
import type { HubDirectory } from './hub/directory.js'
import { decoded } from './source.js'
import type { UrlDirectory } from './url-directory.js'

/** Names of files that can be a source. At a URL, only the name tells a file from a folder. */
const FILES = /\.(onnx|safetensors|json|gguf|bin|pt|pth|ckpt)$/i

export async function locateInHub(repository: HubDirectory): Promise<Place> {
  const { path } = repository.source
  if (path === '' || (await repository.folders()).length > 0 || (await repository.list()).length > 0)
    return { directory: repository, file: undefined }
  const root = repository.at('')
  const parts = path.split('/')
  if (await root.has(path)) return locateFile((count) => repository.at(parts.slice(0, count).join('/')), parts)
  throw new FileError({
    where: repository.name,
    what: 'no such folder or file in the repository',
    hint: `It has ${[...(await root.folders()).map((name) => `${name}/`), ...(await root.list())].slice(0, 10).join(', ')}`,
  })
}

export async function locateAtUrl(folder: UrlDirectory): Promise<Place> {
  const url = new URL(folder.url)
  if (!FILES.test(url.pathname)) return { directory: folder, file: undefined }
  const parts = url.pathname.slice(1).split('/')
  const at = (count: number) => {
    url.pathname = `${parts.slice(0, count).join('/')}/`
    return folder.at(url.href)
  }
  const names = parts.map((part) => decoded(part) ?? part)
  return locateFile(at, names)
}

async function locateFile(at: (count: number) => Directory, parts: readonly string[]): Promise<Place> {
  const folder = at(parts.length - 1)
  const [name] = splitName(parts.at(-1)!, folder.name)
  const inner = parts.at(-2)
  return inner === undefined
    ? { directory: folder, file: name }
    : locateGraph(folder, name, { directory: at(parts.length - 2), name: inner })
}

/** Finds the model's folder for a graph. On the Hub, graphs are in onnx/, one folder below config.json. */
export async function locateGraph(
  folder: Directory,
  file: string,
  around: { readonly directory: Directory; readonly name: string },
): Promise<Place> {
  const isBelow =
    file.endsWith('.onnx') && !(await folder.has('config.json')) && (await around.directory.has('config.json'))
  return isBelow ? { directory: around.directory, file: `${around.name}/${file}` } : { directory: folder, file }
}
