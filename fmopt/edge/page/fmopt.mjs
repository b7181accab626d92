// Runs this bundle's model in a browser: ONNX Runtime Web (WebAssembly SIMD) and tokenizers.js, nothing from elsewhere.
//
//     import { load } from './web/fmopt.mjs'
//     const model = await load()            // {threads: 4} needs cross-origin isolation headers (see serve.py)
//     await model.answer('a text')          // what people read;  model.predict('a text') is what is judged
//     await model.verify()                  // golden predictions, as run.py verify

import * as ort from './ort.wasm.min.mjs'
import { Tokenizer } from './tokenizers.min.mjs'

export const version = ort.env.versions.web
ort.env.wasm.wasmPaths = new URL('./', import.meta.url).href

// Threads are those of the whole page: the first model that is opened decides.
export async function load({ base = new URL('../', import.meta.url).href, threads = 1 } = {}) {
  const read = async name => (await found(base + name)).json()
  const facts = await read('fmopt.json')
  const tokenizer = openTokenizer(await read('tokenizer.json'), await read('tokenizer_config.json'), facts.pipeline)
  ort.env.wasm.numThreads = self.crossOriginIsolated ? threads : 1 // it would begin them, and now and then fail
  const bytes = new Uint8Array(await (await found(base + facts.model_file)).arrayBuffer())
  const session = await ort.InferenceSession.create(bytes, { executionProviders: ['wasm'] })
  return new Model(facts, tokenizer, session, () => read('golden.json'))
}

// Whether this browser offers a GPU to pages, for a line in a report. Nothing here runs on it.
export async function webgpu() {
  const late = new Promise(done => setTimeout(done, 5000, null)) // some browsers without a GPU never answer
  const adapter = await Promise.race([navigator.gpu?.requestAdapter(), late])
  return adapter ? `${adapter.info.vendor} ${adapter.info.architecture}`.trim() : null
}

class Model {
  constructor(facts, tokenizer, session, golden) {
    Object.assign(this, { facts, tokenizer, session, golden, pipeline: facts.pipeline })
  }

  // Threads that the page really got: without the headers it is one, whatever was asked.
  get threads() { return ort.env.wasm.numThreads }

  // Token ids and type ids of a text or [text, text], cut as run.py cuts.
  tokens(raw) {
    const [text, pair] = Array.isArray(raw) ? raw : [raw, null]
    const full = this.tokenizer.encode(text, { text_pair: pair, return_token_type_ids: true })
    const types = full.token_type_ids ?? full.ids.map(() => 0)
    const most = this.pipeline.max_length
    if (full.ids.length <= most) return { ids: full.ids, types }
    const parts = [text, pair].filter(part => part !== null)
    const lengths = parts.map(part => this.tokenizer.encode(part, { add_special_tokens: false }).ids.length)
    const room = most - (full.ids.length - lengths.reduce((sum, length) => sum + length, 0))
    return dropped(full.ids, types, places(this.tokenizer, parts, full.ids), fitted(lengths, room), this.fromLeft)
  }

  get fromLeft() { return this.tokenizer.truncatesLeft }

  feeds(raw) {
    const { ids, types } = this.tokens(raw)
    const made = { input_ids: ids, attention_mask: ids.map(() => 1), token_type_ids: types, position_ids: ids.map((_, i) => i) }
    return this.tensors(made, [1, ids.length])
  }

  // Tensors of named lists of whole numbers, of the types that the graph takes.
  tensors(lists, shape) {
    const kinds = Object.fromEntries(this.session.inputMetadata.map(one => [one.name, one.type]))
    return Object.fromEntries(this.session.inputNames.map(name => {
      if (!(name in lists)) throw new Error(`the graph wants ${name}, which a text does not give`)
      const narrow = kinds[name] === 'int32'
      const values = narrow ? Int32Array.from(lists[name]) : BigInt64Array.from(lists[name], BigInt)
      return [name, new ort.Tensor(narrow ? 'int32' : 'int64', values, shape)]
    }))
  }

  // The prediction as it is judged: a Float32Array (of a fill-mask model one for each mask).
  async predict(raw) {
    const feeds = this.feeds(raw)
    const outputs = await this.session.run(feeds)
    const wanted = this.pipeline.outputs[0]
    const output = outputs[wanted] ?? outputs[this.session.outputNames[0]]
    return TASKS[this.pipeline.task].prediction(output, this.pipeline, feeds)
  }

  async answer(raw) {
    const prediction = await this.predict(raw)
    return TASKS[this.pipeline.task].answer(prediction, this)
  }

  // The largest difference to the golden predictions, which must be within the tolerance.
  async verify() {
    const { items, tolerance, distance } = await this.golden()
    const apart = DISTANCES[distance] ?? largestDifference
    const differences = []
    for (const { raw, prediction } of items) {
      const got = [await this.predict(raw.pair ?? raw.text)].flat().flatMap(row => Array.from(row))
      const wanted = prediction.flat()
      if (got.length !== wanted.length) throw new Error(`${got.length} numbers instead of ${wanted.length}`)
      differences.push(apart(wanted, got, Array.isArray(prediction[0]) ? prediction[0].length : wanted.length))
    }
    const largest = Math.max(...differences)
    return { ok: largest <= tolerance, largest, tolerance, differences, threads: this.threads }
  }

  // Milliseconds of one pass through the graph, by the page's own clock.
  async time(feeds) {
    const begun = performance.now()
    await this.session.run(feeds)
    return performance.now() - begun
  }
}

// What a task makes of the graph's first output, and what people read of that.
const TASKS = {
  'sentence-embedding': { prediction: pooled, answer: vector => Array.from(vector) },
  'text-classification': {
    prediction: output => output.data.slice(),
    answer: (logits, model) => labelled(logits, model.pipeline),
  },
  'text-regression': { prediction: output => output.data.slice(0, 1), answer: values => values[0] },
  'fill-mask': {
    prediction: (output, pipeline, feeds) => fills(output, feeds.input_ids.data, pipeline),
    answer: (rows, model) => rows.map(row => likeliest(row, model.tokenizer)),
  },
}

// What golden predictions are compared by, as in edge/parts.py: rows of `width` numbers, before and now.
const norm = values => Math.hypot(...values)
const rows = (values, width) => Array.from({ length: values.length / width }, (_, row) => values.slice(row * width, (row + 1) * width))
const largestDifference = (before, now) => before.reduce((most, value, i) => Math.max(most, Math.abs(value - now[i])), 0)
const DISTANCES = {
  'cosine distance': (before, now) =>
    1 - before.reduce((sum, value, i) => sum + value * now[i], 0) / Math.max(norm(before) * norm(now), 1e-12),
  'relative change': (before, now, width) => {
    const centred = values => rows(values, width).flatMap(row => {
      const mean = width > 1 ? row.reduce((sum, value) => sum + value, 0) / width : 0
      return row.map(value => value - mean)
    })
    const [was, is] = [centred(before), centred(now)]
    return norm(was.map((value, i) => value - is[i])) / Math.max(norm(was), 1e-3)
  },
  'probability moved': (before, now, width) => {
    const moved = rows(before.map((value, i) => Math.abs(Math.exp(value) - Math.exp(now[i]))), width)
    return Math.max(0, ...moved.map(row => row.reduce((sum, value) => sum + value, 0) / 2))
  },
}

async function found(url) {
  const got = await fetch(url)
  if (!got.ok) throw new Error(`${url}: ${got.status}; serve the whole bundle folder`)
  return got
}

// ------------------------------------------------------------------------------ texts -> tokens

function openTokenizer(written, config, pipeline) {
  if (pipeline.add_prefix_space) {
    for (const part of parts([written.pre_tokenizer, written.post_processor])) {
      if ((part.type === 'ByteLevel' || part.type === 'RobertaProcessing') && 'add_prefix_space' in part) part.add_prefix_space = true
    }
  }
  const tokenizer = new Tokenizer(written, config)
  tokenizer.truncatesLeft = (written.truncation?.direction ?? 'Right').toLowerCase() === 'left'
  return tokenizer
}

function* parts(value) {
  if (value && typeof value === 'object') {
    yield value
    for (const one of Object.values(value)) yield* parts(one)
  }
}

// Where each text's own tokens begin and end among all with special tokens.
function places(tokenizer, texts, ids) {
  let from = 0
  return texts.map(text => {
    const own = tokenizer.encode(text, { add_special_tokens: false }).ids
    while (from + own.length <= ids.length && !own.every((id, i) => ids[from + i] === id)) from++
    const place = [from, from + own.length]
    from += own.length
    return place
  })
}

// How many tokens of each text stay, the longer cut first: as the tokenizers library's "longest_first".
function fitted(lengths, room) {
  if (lengths.length === 1) return [room]
  let [short, long] = lengths[0] <= lengths[1] ? lengths : [lengths[1], lengths[0]]
  long = short > room ? short : Math.max(short, room - short)
  if (short + long > room) [short, long] = [Math.floor(room / 2), Math.floor(room / 2) + room % 2]
  return lengths[0] <= lengths[1] ? [short, long] : [long, short]
}

function dropped(ids, types, where, kept, left) {
  const gone = new Set()
  where.forEach(([start, end], i) => {
    const over = Math.max(end - start - kept[i], 0)
    for (let at = 0; at < over; at++) gone.add(left ? start + at : end - 1 - at)
  })
  const stays = (_, i) => !gone.has(i)
  return { ids: ids.filter(stays), types: types.filter(stays) }
}

// ------------------------------------------------------------------------------ outputs -> predictions

function pooled({ data, dims: [, tokens, size] }, { pooling = 'mean', normalize }) {
  const vector = new Float32Array(size)
  if (pooling === 'cls') vector.set(data.subarray(0, size))
  else {
    for (let i = 0; i < size; i++) {
      let sum = 0, most = -Infinity
      for (let token = 0; token < tokens; token++) {
        sum += data[token * size + i]
        most = Math.max(most, data[token * size + i])
      }
      vector[i] = pooling === 'max' ? most : sum / tokens
    }
  }
  if (normalize) {
    const norm = Math.max(Math.hypot(...vector), 1e-12)
    for (let i = 0; i < size; i++) vector[i] /= norm
  }
  return vector
}

function fills({ data, dims: [, , size] }, ids, { mask }) {
  const at = Array.from(ids, Number).flatMap((id, i) => id === mask.id ? [i] : [])
  if (!at.length) throw new Error(`there is no ${mask.token}; write it where a word is wanted`)
  return at.map(token => {
    const row = data.slice(token * size, (token + 1) * size)
    const most = row.reduce((a, b) => Math.max(a, b), -Infinity)
    const total = Math.log(row.reduce((sum, value) => sum + Math.exp(value - most), 0))
    return row.map(value => value - most - total)
  })
}

function labelled(logits, { labels, multi_label }) {
  const most = Math.max(...logits)
  const raised = Array.from(logits, value => multi_label ? 1 / (1 + Math.exp(-value)) : Math.exp(value - most))
  const total = multi_label ? 1 : raised.reduce((sum, value) => sum + value, 0)
  const name = i => labels?.[i] ?? `LABEL_${i}`
  const apart = i => labels?.indexOf(name(i)) === labels?.lastIndexOf(name(i)) ? name(i) : `${name(i)} (class ${i})`
  const scores = Object.fromEntries(raised.map((value, i) => [apart(i), value / total]))
  const best = raised.reduce((best, value, i) => value > raised[best] ? i : best, 0)
  return { label: name(best), score: raised[best] / total, scores }
}

function likeliest(row, tokenizer) {
  return Array.from(row, (value, token) => [value, token]).sort((a, b) => b[0] - a[0]).slice(0, 5)
    .map(([value, token]) => ({ score: Math.exp(value), token, token_str: tokenizer.decode([token]) }))
}
