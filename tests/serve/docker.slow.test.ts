// The Dockerfile and the compose file of docs/serving.md, built and run where Docker is. Both are taken from the page;
// only the package comes from this repository instead of the registry.

import { execFileSync, spawnSync } from 'node:child_process'
import { copyFileSync, cpSync, mkdirSync, readFileSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { expect, it } from 'vitest'
import { scratchFolder } from '../app/cli/lowrank.js'
import { installed } from '../package/consumer.js'

const hasDocker = [['info'], ['compose', 'version']].every((args) => spawnSync('docker', args).status === 0)
if (!hasDocker) console.log('skipped: the container of docs/serving.md: no Docker here')

const blockOf = (language: string, begin: string) => {
  const page = readFileSync('docs/serving.md', 'utf8')
  const blocks = [...page.matchAll(/```(\w+)\n(.*?)```/gs)].filter(([, found]) => found === language)
  return blocks.map(([, , text]) => text).find((text) => text.startsWith(begin))!
}

it('are on the page', () => {
  expect(blockOf('dockerfile', 'FROM node:')).toContain('npm install lowrank ')
  expect(blockOf('yaml', '# compose.yaml')).toContain("volumes: ['./models:/models:ro', './adapters:/adapters:ro']")
})

it.skipIf(!hasDocker)('serve a model and the adapters of a folder', async () => {
  const folder = scratchFolder()
  copyFileSync(join(installed().folder, 'lowrank.tgz'), join(folder, 'lowrank.tgz'))
  const dockerfile = blockOf('dockerfile', 'FROM node:')
    .replace('WORKDIR /app\n', 'WORKDIR /app\nCOPY lowrank.tgz .\n')
    .replace('npm install lowrank ', 'npm install ./lowrank.tgz ')
  writeFileSync(join(folder, 'Dockerfile'), dockerfile)
  writeFileSync(join(folder, 'compose.yaml'), blockOf('yaml', '# compose.yaml').replace(':8000:8000', '::8000'))
  cpSync('models/union-3m', join(folder, 'models', 'base'), { recursive: true })
  mkdirSync(join(folder, 'adapters'))
  cpSync('tests/golden/peft/f32', join(folder, 'adapters', 'sea'), { recursive: true })
  writeFileSync(join(folder, 'keys'), 'root=root-secret admin\n', { mode: 0o644 })
  const compose = (...args: string[]) =>
    execFileSync('docker', ['compose', ...args], {
      cwd: folder,
      encoding: 'utf8',
      stdio: ['ignore', 'pipe', 'inherit'],
    })
  try {
    compose('up', '--build', '--detach')
    const url = `http://${compose('port', 'lowrank', '8000').trim()}`
    const status = (path: string) => fetch(url + path).then((response) => response.status)
    await expect.poll(() => status('/ready').catch(() => 0), { timeout: 60_000 }).toBe(200)
    expect(await status('/v1/models')).toBe(401)
    const headers = { 'content-type': 'application/json', authorization: 'Bearer root-secret' }
    const body = JSON.stringify({ model: 'sea', prompt: 'And the people', max_tokens: 4 })
    expect((await fetch(`${url}/v1/completions`, { method: 'POST', headers, body })).status).toBe(200)
    compose('stop')
    const { ExitCode } = JSON.parse(compose('ps', '--all', '--format', 'json').trim().split('\n')[0])
    expect(ExitCode).toBe(0)
  } finally {
    compose('down', '--rmi', 'local', '--volumes')
  }
})
