// Beam's JavaScript SDK, unchanged, against a bridge: a deployment is found and called, its task ends with the result;
// a wrong token and an unknown function are errors. GATEWAY, TOKEN and WORKSPACE come from the environment.
import assert from "node:assert/strict";
import { beamOpts, Deployments, Task } from "@beamcloud/beam-js";

beamOpts.gatewayUrl = process.env.GATEWAY;
beamOpts.token = process.env.TOKEN;
beamOpts.workspaceId = process.env.WORKSPACE;

const tasks = {
  async get({ id }) {
    const r = await Deployments.request({ url: `/api/v1/task/${beamOpts.workspaceId}/${id}` });
    return new Task(tasks, r.data);
  },
  async cancel(list) {
    return Deployments.request({ method: "DELETE", url: `/api/v1/task/${beamOpts.workspaceId}`, data: { ids: list.map((t) => t.data.id) } });
  },
};

async function end(id, within) {
  const task = await tasks.get({ id });
  for (const start = Date.now(); Date.now() - start < within; ) {
    await task.refresh();
    if (["COMPLETE", "ERROR", "CANCELLED", "TIMEOUT", "EXPIRED"].includes(task.data.status)) return task.data;
    await new Promise((done) => setTimeout(done, 50));
  }
  throw new Error(`task ${id} is ${task.data.status}`);
}

const square = await Deployments.get({ name: "square", stubType: "function" });
assert.equal(square.data.name, "square");
assert.equal(square.data.version, 1);

const called = await square.call({ n: 12 });
assert.equal(called.status, 200);
const done = await end(called.data.task_id, 60_000);
assert.equal(done.status, "COMPLETE");
assert.equal(done.result, 144);
assert.deepEqual(done.outputs, []);

const positional = await square.call({ args: [5], kwargs: {} });
assert.equal((await end(positional.data.task_id, 60_000)).result, 25);

const failed = await square.call({ n: "no number" });
const why = await end(failed.data.task_id, 60_000);
assert.equal(why.status, "ERROR");
assert.match(why.failure_reason, /TypeError/);

const byId = await Deployments.get({ id: square.data.id });
assert.equal(byId.data.id, square.data.id);

const slow = await (await Deployments.get({ name: "slow", stubType: "function" })).call({ n: 600 });
const running = await tasks.get({ id: slow.data.task_id });
await running.cancel();
assert.equal((await end(slow.data.task_id, 60_000)).status, "CANCELLED");

await assert.rejects(Deployments.get({ name: "nothing", stubType: "function" }), /not found/);
await assert.rejects(Deployments.get({ id: "nothing" }), /not found/i);
await assert.rejects(Deployments.request({ method: "POST", url: "/function/nothing/v1", data: {} }), (e) => e.response.status === 400);
await assert.rejects(
  Deployments.request({ url: `/api/v1/task/${beamOpts.workspaceId}`, headers: { Authorization: "Bearer wrong" } }),
  (e) => e.response.status === 401,
);
console.log("every call was answered as Beam answers it");
