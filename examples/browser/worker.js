// Copyright 2026 The lsg-xlmr authors. Licensed under the Apache License, Version 2.0.
/*
What index.html runs beside itself: transformers.js with the 8-bit ONNX file of a checkpoint. In the page's address:

    ?model=tiny-lsg-onnx   the checkpoint's folder on this server
    &dtype=fp32            onnx/model.onnx in the place of onnx/model_quantized.onnx
    &library=node_modules  the folder on this server that has transformers.js, put there by npm; without it, jsdelivr.net
*/

const parameters = new URL(location).searchParams;
const [folder, dtype, library] = ['model', 'dtype', 'library'].map((name) => parameters.get(name));
const NODE_MODULES = library && `${location.origin}/${library}`; // of no other server, since its code is run
const TRANSFORMERS = library
  ? `${NODE_MODULES}/@huggingface/transformers`
  : 'https://cdn.jsdelivr.net/npm/@huggingface/transformers@4.3.1';

/** An embedder answers with a row for each document, the most similar to the query first. */
async function embedder({ pipeline }, options) {
  const embed = await pipeline('feature-extraction', folder, options);

  async function vector(text) {
    const tokens = countTokens(embed.tokenizer, text);
    const start = performance.now();
    const { data } = await embed(text, { pooling: 'mean', normalize: true });
    return { tokens, numbers: Array.from(data), seconds: (performance.now() - start) / 1000 };
  }

  async function run({ text, query }) {
    const documents = text.split(/^-{3,}\s*$/m).filter((document) => document.trim());
    const sought = query.trim() && (await vector(query));
    const rows = [];
    for (const document of documents) {
      postMessage({ line: `Document ${rows.length + 1} of ${documents.length} …`, progress: rows.length / documents.length });
      const { tokens, numbers, seconds } = await vector(document);
      rows.push({
        ...(sought && { similarity: numbers.reduce((sum, x, i) => sum + x * sought.numbers[i], 0).toFixed(4) }),
        document: document.trim().slice(0, 100),
        tokens,
        seconds: seconds.toFixed(2),
        [`vector of ${numbers.length} numbers`]: numbers.map((x) => x.toFixed(6)).join(', '),
      });
    }
    return rows.sort((one, other) => other.similarity - one.similarity);
  }
  return { run };
}

/** A masked LM answers with a row for each mask. Its file may give the logits of the masks or of all tokens. */
async function maskedLM({ AutoModelForMaskedLM, AutoTokenizer, softmax }, options) {
  const tokenizer = await AutoTokenizer.from_pretrained(folder, options);
  const model = await AutoModelForMaskedLM.from_pretrained(folder, options);

  async function run({ text }) {
    const tokens = countTokens(tokenizer, text);
    const start = performance.now();
    const inputs = tokenizer(text);
    const ids = Array.from(inputs.input_ids.data, Number);
    const masks = ids.flatMap((id, place) => (id === tokenizer.mask_token_id ? [place] : []));
    if (!masks.length) throw new Error(`There is no ${tokenizer.mask_token} in the text: put one where a word is missing.`);
    const { logits } = await model(inputs);
    const seconds = ((performance.now() - start) / 1000).toFixed(2);
    const size = logits.dims.at(-1);
    return masks.map((place, i) => {
      const row = logits.dims.length === 3 ? place : i;
      const chances = softmax(logits.data.slice(row * size, (row + 1) * size));
      const best = Array.from(chances.keys()).sort((one, other) => chances[other] - chances[one]);
      const words = best.slice(0, 3).map((id) => `${tokenizer.decode([id]).trim()} ${(100 * chances[id]).toFixed(1)} %`);
      return { 'mask at token': place, words: words.join(', '), 'tokens of the text': tokens, seconds };
    });
  }
  return { run, mask: tokenizer.mask_token };
}

/** Counted before it is run, because transformers.js would cut the text without a word. */
function countTokens(tokenizer, text) {
  const tokens = tokenizer(text).input_ids.dims[1];
  const most = tokenizer.model_max_length;
  if (tokens > most) throw new Error(`The text has ${tokens} tokens, and the model takes ${most} at most: shorten it.`);
  return tokens;
}

async function load() {
  if (!folder) throw new Error('Name the folder of a checkpoint in the address: ?model=tiny-lsg-onnx');
  const config = await fetch(`${location.origin}/${folder}/config.json`);
  if (!config.ok) throw new Error(`This server has no ${folder}/config.json: start it where the folder lies.`);
  const [architecture] = (await config.json()).architectures;
  const kind = { LSGXLMRobertaModel: embedder, LSGXLMRobertaForMaskedLM: maskedLM }[architecture];
  if (!kind) throw new Error(`${folder} is a ${architecture}; this page runs embedders and masked LMs.`);

  const transformers = await import(`${TRANSFORMERS}/dist/transformers.min.js`);
  const { env } = transformers;
  env.allowRemoteModels = false;
  env.allowLocalModels = true;
  env.localModelPath = '/';
  env.useBrowserCache = false; // or a folder that is converted again would not be seen
  if (library) env.backends.onnx.wasm.wasmPaths = `${NODE_MODULES}/onnxruntime-web/dist/`;
  const start = performance.now();
  const { run, mask } = await kind(transformers, {
    dtype: dtype ?? 'q8',
    progress_callback: ({ file, progress }) => {
      if (progress) postMessage({ line: `Loading ${file} …`, progress: progress / 100 });
    },
  });
  const seconds = ((performance.now() - start) / 1000).toFixed(1);
  self.onmessage = ({ data }) => run(data).then((rows) => postMessage({ line: 'Done.', rows }), fail);
  postMessage({ line: `${folder} is ready (${seconds} s).`, loaded: true, mask });
}

function fail(error) {
  postMessage({ line: error.message.split('\n')[0], error: true });
}

load().catch(fail);
