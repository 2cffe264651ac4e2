// Answers questions with transformers.js: of {models, name, dtype, questions} on stdin, for each question the answer of
// its pipeline, and the token ids and logits behind it. Argument: the folder node_modules.

import { readFileSync } from "node:fs";
import { pathToFileURL } from "node:url";

const library = `${process.argv[2]}/@huggingface/transformers/dist/transformers.node.mjs`;
const { env, pipeline } = await import(pathToFileURL(library));
const { models, name, dtype, questions } = JSON.parse(readFileSync(0, "utf-8"));

env.allowRemoteModels = false;
env.localModelPath = `${models}/`;
const answer = await pipeline("question-answering", name, { dtype });
const results = [];
for (const { question, context } of questions) {
  const inputs = answer.tokenizer(question, { text_pair: context, truncation: true });
  const { start_logits, end_logits } = await answer.model(inputs);
  results.push({
    answer: (await answer(question, context)).answer,
    ids: inputs.input_ids.tolist()[0].map(Number),
    start: [...start_logits.data],
    end: [...end_logits.data],
  });
}
console.log(JSON.stringify(results));
