// The page's buttons. ?threads=4 asks for more threads, which need the headers that serve.py sends.
import { load, webgpu } from './fmopt.mjs'

const [facts, text, run, verify, answer] = ['facts', 'text', 'run', 'verify', 'answer'].map(id => document.getElementById(id))
const asked = Number(new URLSearchParams(location.search).get('threads')) || 1

async function shown(make) {
  try {
    answer.textContent = await make()
  } catch (error) {
    answer.textContent = `error: ${error.message}`
  }
}

try {
  const begun = performance.now()
  const model = await load({ threads: asked })
  document.title = document.querySelector('h1').textContent = model.facts.title
  const threads = model.threads === 1 ? '1 thread' : `${model.threads} threads`
  facts.textContent = `${model.pipeline.task}, ${model.facts.recipe.precision ?? 'fp32'}, ${threads}, ready after ` +
    `${Math.round(performance.now() - begun)} ms.`
  webgpu().then(gpu => { facts.textContent += ` WebGPU: ${gpu ? `${gpu}, not used` : 'not in this browser'}.` })
  text.value = [(await model.golden()).items[0]?.raw].map(raw => raw?.text ?? raw?.pair?.join('\n') ?? '')[0]
  for (const part of [text, run, verify]) part.disabled = false
  run.onclick = () => shown(async () => {
    const lines = text.value.split('\n').filter(line => line.trim())
    const start = performance.now()
    const got = await model.answer(lines.length === 2 ? lines : text.value)
    return `${(performance.now() - start).toFixed(1)} ms\n${JSON.stringify(got, null, 1)}`
  })
  verify.onclick = () => shown(async () => {
    const { ok, largest, tolerance } = await model.verify()
    return `${ok ? 'the same' : 'NOT the same'} as where it was judged: they differ by ${largest.toPrecision(2)}, allowed ${tolerance}`
  })
} catch (error) {
  facts.textContent = `error: ${error.message}`
}
