/*
Runs a pipeline of transformers.js in node, from and to JSON:

    node by_node.cjs path/to/node_modules < question.json

The question has `folder`, `task`, `dtype`, `texts` (one batch), `options` of the call and how often to `repeat` it.
Prints `answers`, arrays of numbers from feature-extraction, and the shortest `seconds` of the repeats after the first.
*/
const { readFileSync } = require('node:fs');
const { createRequire } = require('node:module');
const { basename, dirname, resolve } = require('node:path');

const { env, pipeline } = createRequire(resolve(process.argv[2]) + '/')('@huggingface/transformers');

async function main({ folder, task, dtype, texts, options = {}, repeat = 0 }) {
  env.allowRemoteModels = false;
  env.localModelPath = dirname(folder) + '/';
  const ask = await pipeline(task, basename(folder), { dtype });
  const answers = await ask(texts, options);
  const seconds = [];
  for (let i = 0; i < repeat; i++) {
    const start = performance.now();
    await ask(texts, options);
    seconds.push((performance.now() - start) / 1000);
  }
  console.log(JSON.stringify({ answers: answers.tolist?.() ?? answers, seconds: Math.min(...seconds) }));
}

main(JSON.parse(readFileSync(0, 'utf8')));
