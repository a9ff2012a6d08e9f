// @grpc/grpc-js against a Sluice router: node grpc_client.mjs ADDRESS PROTO_DIR QUESTION
import assert from "node:assert/strict";
import grpc from "@grpc/grpc-js";
import protoLoader from "@grpc/proto-loader";

const [address, protoDir, question] = process.argv.slice(2);
const definition = protoLoader.loadSync("sluice/v1/generation.proto", {
  includeDirs: [protoDir], keepCase: true, longs: Number, enums: String, defaults: true,
});
const { Generation } = grpc.loadPackageDefinition(definition).sluice.v1;
const client = new Generation(address, grpc.credentials.createInsecure());
const deadline = () => new Date(Date.now() + 30_000);

let text = "";
let last = null;
const finished = [];
const call = client.Chat(
  { messages: [{ role: "user", content: question }], sampling: { temperature: 0 } }, { deadline: deadline() });
for await (const message of call) {
  text += message.text_delta;
  last = message;
  if (message.finished !== "FINISH_REASON_UNSPECIFIED") finished.push(message.finished);
}
assert.match(text, /9034/);
assert.deepEqual(finished, ["FINISH_REASON_STOP"]);
assert.ok(last.usage.prompt_tokens > 40);

const refused = client.Generate({ text: "x", sampling: { n: 0 } }, { deadline: deadline() });
await assert.rejects(async () => {
  for await (const _ of refused);
}, (error) => error.code === grpc.status.INVALID_ARGUMENT);
client.close();
console.log("ok");
