// Runs ONNX graphs in WebAssembly, as browsers do: of {graphs, ids} on stdin, the start logits of each graph.
// Argument: the folder node_modules.

import { readFileSync } from "node:fs";
import { pathToFileURL } from "node:url";

const ort = await import(pathToFileURL(`${process.argv[2]}/onnxruntime-web/dist/ort.node.min.mjs`));
const { graphs, ids } = JSON.parse(readFileSync(0, "utf-8"));

ort.env.wasm.numThreads = 1;
const tensor = (value) => new ort.Tensor("int64", BigInt64Array.from(ids, value), [1, ids.length]);
const feeds = { input_ids: tensor(BigInt), attention_mask: tensor(() => 1n), token_type_ids: tensor(() => 0n) };
const results = [];
for (const graph of graphs) {
  const session = await ort.InferenceSession.create(graph, { executionProviders: ["wasm"] });
  const given = Object.fromEntries(session.inputNames.map((name) => [name, feeds[name]]));
  results.push([...(await session.run(given)).start_logits.data]);
}
console.log(JSON.stringify(results));
