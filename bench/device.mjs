// Measures training and writing on devices. Prints a Markdown table with a row for each model and device, and a row for
// PEFT on PyTorch, with CUDA if it is there. Each row is measured in a separate process.
//
//     npm run build && node bench/device.mjs --models FOLDER,… --devices cpu,webgpu [--length 256] [--batch 1]
//         [--rank 8] [--steps 8] [--tokens 64] [--python python3]
//
// FOLDER: a model that lowrank can open. From its config.json PyTorch makes a model of the same shapes with random
// float32 weights; this Python needs the requirements of train-step. Without --python, PyTorch is not measured.
import { spawnSync } from 'node:child_process'
import { fileURLToPath } from 'node:url'
import { parseArgs } from 'node:util'

const { values } = parseArgs({
  options: {
    models: { type: 'string', default: 'models/union-3m' },
    devices: { type: 'string', default: 'cpu' },
    length: { type: 'string', default: '256' },
    batch: { type: 'string', default: '1' },
    rank: { type: 'string', default: '8' },
    steps: { type: 'string', default: '8' },
    tokens: { type: 'string', default: '64' },
    python: { type: 'string' },
    one: { type: 'boolean', default: false },
  },
})
const [length, batch, rank, steps, tokens] = ['length', 'batch', 'rank', 'steps', 'tokens'].map((name) =>
  Number(values[name]),
)

const PEER = `
import json, resource, sys, time
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoConfig, AutoModelForCausalLM
folder, length, batch, rank, steps, tokens = sys.argv[1], *map(int, sys.argv[2:])
device = "cuda" if torch.cuda.is_available() else "cpu"
wait = torch.cuda.synchronize if device == "cuda" else lambda: None
base = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(folder), dtype=torch.float32)
model = get_peft_model(base.to(device), LoraConfig(r=rank, target_modules="all-linear", task_type="CAUSAL_LM"))
optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-4)
times = []
for _ in range(steps):
    ids = torch.randint(100, 1000, (batch, length), device=device)
    start = time.perf_counter()
    model(input_ids=ids, labels=ids).loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    optimizer.zero_grad()
    wait()
    times.append(time.perf_counter() - start)
model.eval()
write = lambda count: model.generate(input_ids=ids[:1, :8], min_new_tokens=count, max_new_tokens=count, do_sample=False)
write(4)
start = time.perf_counter()
write(tokens)
wait()
print(json.dumps({
    "device": "PEFT, " + device,
    "trained": batch * length / sorted(times[2:])[len(times[2:]) // 2],
    "written": tokens / (time.perf_counter() - start),
    "memory": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
    "gpuMemory": torch.cuda.max_memory_allocated() / 2**20 if device == "cuda" else None,
}))
`

if (values.one) await one()
else table()

function table() {
  console.log(
    `${batch} × ${length} tokens, rank ${rank} on all linear layers. Graphics card: ${nvidia('name') ?? 'unknown'}`,
  )
  console.log('| model | device | trained, tokens/s | written, tokens/s | memory, MB | of the GPU, MB |')
  console.log('| --- | --- | ---: | ---: | ---: | ---: |')
  const shared = ['length', 'batch', 'rank', 'steps', 'tokens']
  for (const model of values.models.split(',')) {
    for (const device of values.devices.split(',')) {
      const given = shared.flatMap((name) => [`--${name}`, values[name]])
      row(model, device, process.execPath, [
        fileURLToPath(import.meta.url),
        '--one',
        '--models',
        model,
        '--devices',
        device,
        ...given,
      ])
    }
    const sizes = shared.map((name) => values[name])
    if (values.python !== undefined) row(model, 'PEFT', values.python, ['-c', PEER, model, ...sizes])
  }
}

function row(model, device, program, args) {
  const { stdout, stderr } = spawnSync(program, args, { encoding: 'utf8' })
  try {
    const told = JSON.parse(stdout.trim().split('\n').at(-1))
    const numbers = ['trained', 'written', 'memory', 'gpuMemory'].map((name) =>
      told[name]?.toFixed(name === 'written' ? 1 : 0),
    )
    console.log(`| ${[model, told.device, ...numbers.map((number) => number ?? '')].join(' | ')} |`)
  } catch {
    console.log(`| ${model} | ${device} | failed | | | |\n${stderr.trim().split('\n').slice(-5).join('\n')}`)
  }
}

async function one() {
  const { openSession, train } = await import('../dist/api/node.js')
  const [model, device] = [values.models, values.devices]
  const before = Number(nvidia('memory.used') ?? 0)
  const data = Array.from({ length: batch }, (_, i) => ({
    text: `${i} ${'the ship went to sea and came back at night '.repeat(length)}`,
  }))
  const settings = { batchSize: batch, gradientAccumulation: 1, maxLength: length, maxSteps: steps, learningRate: 1e-4 }
  let gpu = 0
  const step = () => {
    gpu = Math.max(gpu, Number(nvidia('memory.used') ?? 0) - before)
  }
  const { adapter, report } = await train({ model, data, device, config: { rank }, on: { step }, ...settings })
  const session = await openSession(model, { device, adapters: { adapter } })
  const given = { adapter: 'adapter', temperature: 0 }
  await session.generate('The ship', { ...given, maxNewTokens: 4 })
  const { tokens: written, seconds } = await session.generate('The ship', { ...given, maxNewTokens: tokens })
  console.log(
    JSON.stringify({
      device,
      trained: (report.tokens / report.steps / report.stepMillis) * 1000,
      written: written / seconds,
      memory: process.resourceUsage().maxRSS / 1024,
      gpuMemory: gpu || null,
    }),
  )
  process.exit(0)
}

function nvidia(what) {
  const { stdout, status } = spawnSync('nvidia-smi', [`--query-gpu=${what}`, '--format=csv,noheader,nounits'], {
    encoding: 'utf8',
  })
  return status === 0 ? stdout.trim().split('\n')[0] : undefined
}
