// A server with the Hub's routes for uploads that lowrank uses. It keeps the files that it gets.

import { createHash } from 'node:crypto'
import { createServer } from 'node:http'

/** Starts the server on a free port. */
export async function startHub() {
  /** Contents of large files, by SHA-256. */
  const large = new Map()
  const hub = { endpoint: '', repositories: new Map(), uploads: 0, failCommits: 0, refuses: false, reset, close }
  function reset() {
    large.clear()
    hub.repositories.clear()
    Object.assign(hub, { uploads: 0, failCommits: 0, refuses: false })
  }
  const routes = [
    [
      'POST',
      /^\/api\/repos\/create$/,
      (_, { name, organization, visibility }) => {
        const id = `${organization}/${name}`
        if (hub.repositories.has(id)) return [409, { error: 'You already created this model repo' }]
        hub.repositories.set(id, { visibility, files: new Map() })
        return [200, { url: `${hub.endpoint}/${id}`, name: id, id }]
      },
    ],
    [
      'POST',
      /^\/api\/models\/([^/]+\/[^/]+)\/preupload\//,
      (_, { files }) => {
        const modeOf = (path) => (path.endsWith('.safetensors') ? 'lfs' : 'regular')
        return [200, { files: files.map(({ path }) => ({ path, uploadMode: modeOf(path), shouldIgnore: false })) }]
      },
    ],
    [
      'POST',
      /^\/([^/]+\/[^/]+)\.git\/info\/lfs\/objects\/batch$/,
      (_, { objects }) => {
        const action = (oid) => ({ actions: { upload: { href: `${hub.endpoint}/large/${oid}` } } })
        const all = objects.map(({ oid, size }) => ({ oid, size, ...(!large.has(oid) && action(oid)) }))
        return [200, { transfer: 'basic', objects: all }]
      },
    ],
    [
      'PUT',
      /^\/large\/([0-9a-f]{64})$/,
      ([oid], body) => {
        if (createHash('sha256').update(body).digest('hex') !== oid) return [400, { error: 'another content' }]
        large.set(oid, body)
        hub.uploads++
        return [200, {}]
      },
    ],
    [
      'POST',
      /^\/api\/models\/([^/]+\/[^/]+)\/commit\//,
      ([id], body) => {
        if (hub.failCommits-- > 0) return [503, { error: 'Try again' }]
        const { files } = hub.repositories.get(id)
        for (const line of body
          .toString()
          .trim()
          .split('\n')
          .map((text) => JSON.parse(text))) {
          if (line.key === 'file') files.set(line.value.path, Buffer.from(line.value.content, 'base64'))
          if (line.key === 'lfsFile') files.set(line.value.path, large.get(line.value.oid))
        }
        return [
          200,
          { success: true, commitOid: 'c'.repeat(40), commitUrl: `${hub.endpoint}/${id}/commit/c`, hookOutput: '' },
        ]
      },
    ],
  ]
  const server = createServer(async (request, response) => {
    const chunks = []
    for await (const chunk of request) chunks.push(chunk)
    const body = Buffer.concat(chunks)
    const { pathname } = new URL(request.url, 'http://hub')
    const answer = () => {
      const isKnown = request.headers.authorization === 'Bearer hf_test' || pathname.startsWith('/large/')
      if (!isKnown || hub.refuses) return [403, { error: 'You don’t have the rights to create a model' }]
      for (const [method, path, handle] of routes) {
        const found = method === request.method && path.exec(pathname)
        if (!found) continue
        const isJson = /^application\/(json|vnd\.git-lfs\+json)/.test(request.headers['content-type'] ?? '')
        return handle(found.slice(1), isJson ? JSON.parse(body.toString()) : body)
      }
      return [404, { error: `no route ${request.method} ${pathname}` }]
    }
    const [status, json] = answer()
    response.writeHead(status, { 'content-type': 'application/json' }).end(JSON.stringify(json))
  })
  await new Promise((resolve) => server.listen(0, '127.0.0.1', resolve))
  hub.endpoint = `http://127.0.0.1:${server.address().port}`
  async function close() {
    server.closeAllConnections()
    await new Promise((resolve) => server.close(resolve))
  }
  return hub
}
