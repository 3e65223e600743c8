"use strict";
// One page, no framework. Everything shown is text nodes; live updates come over fetch streams, because an
// EventSource cannot send the token as a header.

const TOKEN = "gantry-token";
const $ = (id) => document.getElementById(id);
let leave = new AbortController();

function h(tag, attrs, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(attrs || {})) {
    if (value === null || value === undefined || value === false) continue;
    if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else node.setAttribute(name, value === true ? "" : value);
  }
  for (const child of children.flat(9)) if (child !== null && child !== undefined && child !== false) node.append(child);
  return node;
}
function s(tag, attrs, ...children) {
  const node = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(attrs || {})) node.setAttribute(name, value);
  node.append(...children);
  return node;
}
const link = (href, attrs, ...children) => h("a", { href, "data-link": "", ...attrs }, ...children);

// Status: shape, colour and word.
const CIRCLE = "M8 2a6 6 0 1 0 .01 0z";
const OCTAGON = "M5.5 2h5L14 5.5v5L10.500 14h-5L2 10.500v-5z";
const SHAPES = {
  success: [CIRCLE, "M5 8.200l2.200 2.200L11.200 6"], failed: [OCTAGON, "M5.800 5.800l4.400 4.400M10.200 5.800l-4.400 4.400"],
  timedout: [OCTAGON, "M8 5v3.200l2 1.300"], canceled: [CIRCLE, "M4 12L12 4"], on_hold: ["M8 1.500L14.500 8 8 14.500 1.500 8z", "M8 5v3.500M8 10.800v.1"],
  infrastructure_fail: ["M8 2l6.500 12h-13z", "M8 6l-1 3h2l-1 3"], unauthorized: ["M8 1.500l5.500 2v4.500c0 3-2.500 5.300-5.500 6.500C5 13.300 2.500 11 2.500 8V3.500z", "M5.500 8h5"],
  queued: [CIRCLE, "M8 5v3l2 1.500"], blocked: ["M4.500 2h7M4.500 14h7M5 2c0 6 6 6 6 12M11 2c0 6-6 6-6 12"], not_run: [CIRCLE, "M5.500 8h5"],
};
const WORDS = { success: "Passed", failed: "Failed", failing: "Failing", running: "Running", on_hold: "Needs approval", canceled: "Cancelled", timedout: "Timed out",
  infrastructure_fail: "Infrastructure error", unauthorized: "Not allowed", queued: "Queued", blocked: "Waiting", not_run: "Skipped", not_running: "Preparing", errored: "Config error", error: "Error", created: "Starting" };
function badge(status) {
  const icon = s("svg", { viewBox: "0 0 16 16", "aria-hidden": "true" });
  if (status === "running" || status === "failing" || status === "not_running") {
    icon.append(s("path", { d: CIRCLE, opacity: ".3" }), s("path", { class: "turn", d: "M8 2a6 6 0 0 1 6 6" }));
  } else for (const d of SHAPES[status] || (status === "errored" || status === "error" ? SHAPES.failed : [CIRCLE])) icon.append(s("path", { d }));
  return h("span", { class: `badge s-${status}` }, icon, WORDS[status] || status);
}

function ago(at) {
  const seconds = Math.max(0, (Date.now() - Date.parse(at)) / 1000);
  const text = seconds < 60 ? "just now" : seconds < 3600 ? `${Math.floor(seconds / 60)} min ago` : seconds < 86400 ? `${Math.floor(seconds / 3600)} h ago` : new Date(at).toLocaleDateString();
  return h("time", { datetime: at, title: new Date(at).toLocaleString() }, text);
}
function took(from, to) {
  if (!from) return "";
  const all = Math.max(0, (to ? Date.parse(to) : Date.now()) - Date.parse(from)) / 1000;
  return all < 60 ? `${all.toFixed(all < 10 ? 1 : 0)} s` : `${Math.floor(all / 60)} min ${Math.floor(all % 60)} s`;
}
let hush;
function say(text) { $("say").textContent = text; clearTimeout(hush); hush = setTimeout(() => { $("say").textContent = ""; }, 6000); }
const sleep = (ms, signal) => new Promise((done) => { const timer = setTimeout(done, ms); signal.addEventListener("abort", () => { clearTimeout(timer); done(); }, { once: true }); });

async function call(path, options = {}) {
  const response = await fetch(path, { ...options, headers: { authorization: `Bearer ${sessionStorage.getItem(TOKEN) || ""}`, "content-type": "application/json", ...options.headers } });
  if (response.status === 401) { sessionStorage.removeItem(TOKEN); route(); throw new DOMException("signed out", "AbortError"); }
  return response;
}
async function ask(query, variables, signal) {
  const response = await call("/graphql", { method: "POST", body: JSON.stringify({ query, variables }), signal });
  const answer = await response.json();
  if (answer.errors) throw new Error(answer.errors[0].message);
  return answer.data;
}
async function change(name, query, variables) {
  try {
    const data = await ask(query, variables);
    const problem = data[name].errors[0];
    if (problem) { say(problem.message); return null; }
    return data[name];
  } catch (error) { if (error.name !== "AbortError") say(error.message); return null; }
}
async function* events(response) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    rest += value;
    let at;
    while ((at = rest.indexOf("\n\n")) >= 0) {
      const event = { event: "message", data: "", id: null };
      for (const line of rest.slice(0, at).split("\n")) {
        const colon = line.indexOf(":");
        if (colon < 1) continue;
        const value = line.slice(colon + 1).replace(/^ /, "");
        if (line.slice(0, colon) === "data") event.data += value; else event[line.slice(0, colon)] = value;
      }
      rest = rest.slice(at + 2);
      if (event.data || event.event !== "message") yield event;
    }
  }
}
function live(on) { $("live").className = on ? "live on" : "live"; $("live").textContent = on ? "Live" : "Reconnecting…"; }
// Keeps a subscription open as long as the page is shown; after a break the first answer brings it up to date.
async function follow(query, variables, signal, each) {
  for (let pause = 500; !signal.aborted; pause = Math.min(pause * 2, 15000)) {
    try {
      const response = await call("/graphql/stream", { method: "POST", body: JSON.stringify({ query, variables }), signal });
      if (response.ok) {
        live(true);
        for await (const event of events(response)) {
          if (event.event !== "next") continue;
          pause = 500;
          const answer = JSON.parse(event.data);
          if (answer.errors) throw new Error(answer.errors[0].message);
          each(answer.data);
        }
      }
    } catch (error) { if (signal.aborted) return; }
    if (signal.aborted) return;
    live(false);
    await sleep(pause, signal);
  }
}

function show(title, crumbs, ...children) {
  document.title = `${title} · Gantry`;
  $("crumbs").replaceChildren(...crumbs.map((crumb) => h("span", {}, crumb)));
  $("main").replaceChildren(...children.flat().filter(Boolean));
}
const crumbsOf = (slug) => [link(`/projects/${slug}`, {}, slug.replace(/^git\//, ""))];

function signIn() {
  $("live").textContent = ""; $("live").className = "live"; $("user").replaceChildren();
  const input = h("input", { type: "password", name: "token", autocomplete: "off", required: true, "aria-label": "Token", placeholder: "Token" });
  const form = h("form", { class: "card signin", onsubmit: async (event) => {
    event.preventDefault();
    const response = await fetch("/api/v2/me", { headers: { authorization: `Bearer ${input.value.trim()}` } });
    if (!response.ok) { say(response.status === 401 ? "This token opens nothing." : "The server does not answer."); return; }
    sessionStorage.setItem(TOKEN, input.value.trim());
    route();
  } }, h("h1", {}, "Sign in"), h("p", { class: "soft" }, "With a personal token. The first administrator's lies in ", h("span", { class: "mono" }, "admin-token"), " in the data folder."), input, h("button", { class: "main" }, "Sign in"));
  show("Sign in", [], form);
  input.focus();
}

// The code that `gantry up` printed is traded for a token; a used one leads to the ordinary form.
async function redeem(code) {
  const response = await fetch("/setup", { method: "POST", headers: { "content-type": "application/json" }, body: JSON.stringify({ code }) });
  const answer = await response.json().catch(() => ({}));
  history.replaceState(null, "", "/");
  if (response.ok) sessionStorage.setItem(TOKEN, answer.token);
  await route();
  if (!response.ok) say(answer.detail || "This code opens nothing.");
}

const ROW = "id number status state createdAt branch tag revision subject projectSlug trigger { type actor }";
function pipelineRow(pipeline, withProject) {
  return link(`/projects/${pipeline.projectSlug}/pipelines/${pipeline.number}`, { class: "row", "data-id": pipeline.id }, badge(pipeline.status),
    h("span", { class: "what" }, h("span", {}, `#${pipeline.number} `, pipeline.subject || "(no message)"),
      h("span", { class: "soft" }, withProject ? `${pipeline.projectSlug.replace(/^git\//, "")} · ` : "", pipeline.branch || pipeline.tag || "", " · ", h("span", { class: "mono" }, pipeline.revision.slice(0, 8)), pipeline.trigger.actor ? ` · ${pipeline.trigger.actor}` : "")),
    ago(pipeline.createdAt));
}
async function pipelineList(slug, signal) {
  const data = await ask(`query($slug: String, $after: String) { pipelines(projectSlug: $slug, first: 30, after: $after) { nodes { ${ROW} } pageInfo { hasNextPage endCursor } } }`, { slug }, signal);
  const list = h("div", { class: "list" });
  for (const pipeline of data.pipelines.nodes) list.append(pipelineRow(pipeline, !slug));
  const empty = h("p", { class: "soft" }, "No pipelines yet. Push a repository with a configuration:");
  const howto = h("pre", { class: "howto" }, `git push ${location.protocol}//any:TOKEN@${location.host}/git/${slug ? slug.replace(/^git\//, "") : "local/NAME"}.git HEAD`);
  const hint = h("div", {}, empty, howto);
  const settle = () => { hint.hidden = list.childElementCount > 0; list.hidden = !hint.hidden; };
  settle();
  let page = data.pipelines.pageInfo;
  const more = h("button", { onclick: async () => {
    const next = await ask(`query($slug: String, $after: String) { pipelines(projectSlug: $slug, first: 30, after: $after) { nodes { ${ROW} } pageInfo { hasNextPage endCursor } } }`, { slug, after: page.endCursor });
    for (const pipeline of next.pipelines.nodes) list.append(pipelineRow(pipeline, !slug));
    page = next.pipelines.pageInfo; more.hidden = !page.hasNextPage;
  } }, "Older");
  more.hidden = !page.hasNextPage;
  follow(`subscription($slug: String) { pipelines(projectSlug: $slug) { ${ROW} } }`, { slug }, signal, ({ pipelines: pipeline }) => {
    const row = pipelineRow(pipeline, !slug);
    const old = [...list.children].find((child) => child.dataset.id === pipeline.id);
    if (old) old.replaceWith(row); else list.prepend(row);
    settle();
  });
  return h("div", {}, list, hint, h("p", {}, more));
}

async function home(signal) {
  const data = await ask("{ projects(first: 100) { nodes { slug name organization } } }", {}, signal);
  const projects = h("div", { class: "list" }, data.projects.nodes.map((project) => link(`/projects/${project.slug}`, { class: "row" }, h("span", { class: "soft" }, project.organization), h("span", { class: "what" }, h("span", {}, project.name)), h("span", { class: "when" }, "Open"))));
  show("Pipelines", [], h("h1", {}, "Pipelines"), await pipelineList(null, signal), data.projects.nodes.length ? [h("h2", {}, "Projects"), projects] : null);
}
async function project(slug, signal) {
  const data = await ask("query($slug: String!) { project(slug: $slug) { name slug defaultBranch cloneUrl } }", { slug }, signal);
  if (!data.project) return missing("There is no such project.");
  const trigger = h("button", { class: "main", onclick: async () => {
    trigger.disabled = true;
    const made = await change("triggerPipeline", "mutation($slug: String!) { triggerPipeline(input: { projectSlug: $slug }) { pipeline { number } errors { message } } }", { slug });
    trigger.disabled = false;
    if (made) go(`/projects/${slug}/pipelines/${made.pipeline.number}`);
  } }, `Run ${data.project.defaultBranch}`);
  show(data.project.name, crumbsOf(slug), h("div", { class: "bar" }, h("div", { class: "grow" }, h("h1", {}, data.project.name), h("span", { class: "soft mono" }, data.project.cloneUrl)), trigger), h("h2", {}, "Pipelines"), await pipelineList(slug, signal));
}

// Columns by longest path; within a column in file order, so a node never moves.
function graph(workflow) {
  const jobs = workflow.jobs, depth = new Map(), byId = new Map(jobs.map((job) => [job.id, job]));
  const deep = (job) => {
    if (!depth.has(job.id)) { depth.set(job.id, 0); depth.set(job.id, Math.max(0, ...job.requires.map((edge) => byId.has(edge.jobId) ? deep(byId.get(edge.jobId)) + 1 : 0))); }
    return depth.get(job.id);
  };
  const columns = [];
  for (const job of jobs) (columns[deep(job)] ||= []).push(job);
  const W = 210, H = 58, GX = 60, GY = 14, place = new Map();
  columns.forEach((column, x) => column.forEach((job, y) => place.set(job.id, [x * (W + GX), y * (H + GY)])));
  const width = columns.length * (W + GX) - GX, height = Math.max(1, ...columns.map((column) => column.length)) * (H + GY);
  const edges = s("svg", { class: "edges", width, height, "aria-hidden": "true" });
  for (const job of jobs) for (const edge of job.requires) {
    if (!place.has(edge.jobId)) continue;
    const [fx, fy] = place.get(edge.jobId), [tx, ty] = place.get(job.id), x1 = fx + W, y1 = fy + H / 2, y2 = ty + H / 2, mid = (x1 + tx) / 2;
    edges.append(s("path", { d: `M${x1} ${y1}C${mid} ${y1} ${mid} ${y2} ${tx} ${y2}` }));
  }
  const plane = h("div", { class: "plane" }, edges);
  plane.style.width = `${width}px`; plane.style.height = `${height}px`;
  for (const job of jobs) {
    const [x, y] = place.get(job.id);
    const approve = job.type === "approval" && job.status === "on_hold" && h("button", { class: "main", onclick: async (event) => {
      event.preventDefault(); event.target.disabled = true;
      if (!await change("approveJob", "mutation($id: ID!) { approveJob(id: $id) { errors { message } } }", { id: job.id })) event.target.disabled = false;
    } }, "Approve");
    const inside = [h("span", { class: "name" }, job.name), h("span", { class: "line" }, badge(job.status), approve || took(job.startedAt, job.stoppedAt))];
    const attrs = { class: `node s-${job.status}`, title: job.reason || job.name };
    const node = job.type === "build" ? link(`/jobs/${job.id}`, attrs, ...inside) : h("div", attrs, ...inside);
    node.style.left = `${x}px`; node.style.top = `${y}px`;
    plane.append(node);
  }
  return h("div", { class: "graph" }, plane);
}
const ENDED = new Set(["success", "failed", "error", "canceled", "unauthorized", "not_run"]);
function workflowCard(workflow) {
  const cancel = !ENDED.has(workflow.status) && h("button", { class: "bad", onclick: async (event) => {
    event.target.disabled = true;
    await change("cancelWorkflow", "mutation($id: ID!) { cancelWorkflow(id: $id) { errors { message } } }", { id: workflow.id });
    event.target.disabled = false;
  } }, "Cancel");
  const rerun = (fromFailed, text) => h("button", { onclick: async (event) => {
    event.target.disabled = true;
    await change("rerunWorkflow", "mutation($id: ID!, $f: Boolean!) { rerunWorkflow(id: $id, fromFailed: $f) { errors { message } } }", { id: workflow.id, f: fromFailed });
    event.target.disabled = false;
  } }, text);
  return h("section", { class: "card workflow" }, h("div", { class: "bar" }, badge(workflow.status), h("strong", { class: "grow" }, workflow.name, workflow.rerunOf ? h("span", { class: "soft" }, " rerun") : null),
    h("span", { class: "soft" }, took(workflow.createdAt, workflow.stoppedAt)), cancel, ENDED.has(workflow.status) && [workflow.status !== "success" && rerun(true, "Rerun from failed"), rerun(false, "Rerun")]), graph(workflow));
}
const FULL = "id number status state createdAt branch tag revision subject projectSlug trigger { type actor } errors { type message } workflows { id name status createdAt stoppedAt rerunOf jobs { id name type status reason number startedAt stoppedAt requires { jobId } } }";
function ticking(signal, draw) { const timer = setInterval(draw, 1000); signal.addEventListener("abort", () => clearInterval(timer)); }
async function pipeline(slug, number, signal) {
  const data = await ask(`query($slug: String!, $number: Int!) { project(slug: $slug) { pipeline(number: $number) { ${FULL} } } }`, { slug, number: Number(number) }, signal);
  let shown = data.project && data.project.pipeline;
  if (!shown) return missing("There is no such pipeline.");
  let drawn = "";
  const draw = () => {
    const busy = document.activeElement && document.activeElement.closest && document.activeElement.closest(".workflow");
    const at = busy ? [...$("main").querySelectorAll("a,button")].indexOf(document.activeElement) : -1;
    const scroll = [...document.querySelectorAll(".graph")].map((node) => node.scrollLeft);
    show(`#${number}`, [...crumbsOf(slug), `#${number}`],
      h("div", { class: "bar" }, h("div", { class: "grow" }, h("h1", {}, shown.subject || `Pipeline ${number}`),
        h("span", { class: "soft" }, shown.branch || shown.tag || "", " · ", h("span", { class: "mono" }, shown.revision.slice(0, 8)), shown.trigger.actor ? ` · ${shown.trigger.actor} · ` : " · ", ago(shown.createdAt))), badge(shown.status)),
      shown.errors.map((error) => h("pre", { class: "error" }, error.message)),
      shown.workflows.map(workflowCard),
      !shown.workflows.length && !shown.errors.length ? h("p", { class: "soft" }, "The workflows are being made…") : null);
    document.querySelectorAll(".graph").forEach((node, index) => { node.scrollLeft = scroll[index] || 0; });
    if (at >= 0) { const again = $("main").querySelectorAll("a,button")[at]; if (again) again.focus(); }
  };
  draw();
  follow(`subscription($id: ID!) { pipeline(id: $id) { ${FULL} } }`, { id: shown.id }, signal, (answer) => {
    const text = JSON.stringify(answer.pipeline);
    if (text !== drawn) { drawn = text; shown = answer.pipeline; draw(); }
  });
  ticking(signal, () => { if (shown.workflows.some((workflow) => !ENDED.has(workflow.status)) && !document.querySelector(".workflow button:disabled") && !document.querySelector(".workflow :active")) draw(); });
}

// An allow-list terminal: colours, bold and underline; carriage return overwrites the line; the rest is dropped.
class Terminal {
  constructor(box) { this.box = box; this.line = null; this.rest = ""; this.style = {}; this.fresh = true; this.count = 0; }
  write(text) {
    text = this.rest + text; this.rest = "";
    let from = 0;
    const put = (to) => { if (to > from) this.put(text.slice(from, to)); };
    for (let at = 0; at < text.length; at += 1) {
      const code = text.charCodeAt(at);
      if (code === 10) { put(at); this.newline(); from = at + 1; }
      else if (code === 13) {
        if (at + 1 === text.length) { put(at); this.rest = "\r"; return; }
        put(at); if (text[at + 1] !== "\n") this.fresh = "clear"; from = at + 1;
      } else if (code === 27) {
        const match = /^\x1b(?:\[([0-9;:?]{0,64})([@-~])|\][^\x07\x1b]{0,2048}(?:\x07|\x1b\\)|[PX^_][^\x1b]{0,2048}\x1b\\|[@-Z\\-_a-z0-9=>])/.exec(text.slice(at, at + 2100));
        if (!match) { if (text.length - at < 2100) { put(at); this.rest = text.slice(at); return; } continue; }
        put(at);
        if (match[2] === "m") this.sgr(match[1]); else if (match[2] === "K") this.fresh = this.fresh || false;
        at += match[0].length - 1; from = at + 1;
      }
    }
    put(text.length);
  }
  sgr(codes) {
    const list = (codes || "0").split(/[;:]/).map(Number);
    for (let i = 0; i < list.length; i += 1) {
      const n = list[i];
      if (n === 0) this.style = {}; else if (n === 1) this.style.b = true; else if (n === 4) this.style.u = true; else if (n === 22) this.style.b = false; else if (n === 24) this.style.u = false;
      else if (n >= 30 && n <= 37) this.style.c = n - 30; else if (n >= 90 && n <= 97) this.style.c = n - 82; else if (n === 39) this.style.c = undefined;
      else if (n === 38 || n === 48) { if (list[i + 1] === 5) { if (n === 38 && list[i + 2] < 16) this.style.c = list[i + 2]; i += 2; } else if (list[i + 1] === 2) i += 4; }
    }
  }
  newline() { if (!this.line) this.start(); this.line = null; this.fresh = true; }
  start() {
    this.line = h("span", { class: "l" }); this.box.append(this.line); this.count += 1; this.fresh = false;
    // A page of a hundred thousand lines helps nobody; the whole is in the raw log.
    if (this.count > 20000) { this.box.firstElementChild.remove(); }
  }
  put(text) {
    if (!this.line) this.start();
    if (this.fresh === "clear") { this.line.replaceChildren(); this.fresh = false; }
    text = text.replace(/[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\u200b-\u200f]/g, (c) => `\\x${c.charCodeAt(0).toString(16).padStart(2, "0")}`);
    const { b, u, c } = this.style, cls = `${b ? "b " : ""}${u ? "u " : ""}${c === undefined ? "" : `c${c}`}`.trim();
    this.line.append(cls ? h("span", { class: cls }, text) : document.createTextNode(text));
  }
}
async function tail(step, terminal, box, signal) {
  let offset = 0;
  for (let pause = 500; !signal.aborted; pause = Math.min(pause * 2, 10000)) {
    try {
      const response = await call(`/logs/${step}/tail?offset=${offset}`, { signal });
      if (response.status === 404) { await sleep(1000, signal); continue; }
      for await (const event of events(response)) {
        pause = 500;
        if (event.event === "end") return;
        if (event.event !== "message") continue;
        const piece = JSON.parse(event.data), stick = box.scrollHeight - box.scrollTop - box.clientHeight < 40;
        terminal.write(piece.text); offset = piece.next;
        if (stick) box.scrollTop = box.scrollHeight;
      }
    } catch (error) { if (signal.aborted) return; }
    await sleep(pause, signal);
  }
}
async function job(id, signal) {
  const JOB = "id name type status reason number startedAt stoppedAt parallelism executor resourceClass waiting workflow { id name projectSlug pipelineId pipelineNumber } steps { id number index name status command exitCode startedAt endedAt background log { bytes state } }";
  const read = async () => (await ask(`query($id: ID!) { job(id: $id) { ${JOB} } }`, { id }, signal)).job;
  let shown = await read();
  if (!shown) return missing("There is no such job.");
  const { workflow } = shown, pipelineUrl = `/projects/${workflow.projectSlug}/pipelines/${workflow.pipelineNumber}`;
  const head = h("div", {}), steps = h("div", { class: "list" }), kept = h("div", {}), known = new Map();
  show(shown.name, [...crumbsOf(workflow.projectSlug), link(pipelineUrl, {}, `#${workflow.pipelineNumber}`), workflow.name, shown.name], head, h("h2", {}, "Steps"), steps, kept);
  const open = (entry, step) => {
    entry.box.hidden = !entry.box.hidden;
    entry.head.setAttribute("aria-expanded", String(!entry.box.hidden));
    if (!entry.box.hidden && !entry.tailing) {
      entry.tailing = true;
      if (step.command) entry.log.append(h("span", { class: "cmd" }, step.command));
      tail(step.id, new Terminal(entry.log), entry.log, signal);
    }
  };
  const draw = () => {
    const done = shown.stoppedAt;
    head.replaceChildren(h("div", { class: "bar" }, h("div", { class: "grow" }, h("h1", {}, shown.name), h("span", { class: "soft" }, [shown.number && `#${shown.number}`, shown.executor, shown.resourceClass, took(shown.startedAt, done)].filter(Boolean).join(" · "))), badge(shown.status),
      !done && h("button", { class: "bad", onclick: async (event) => { event.target.disabled = true; await change("cancelJob", "mutation($id: ID!) { cancelJob(id: $id) { errors { message } } }", { id }); } }, "Cancel")),
      shown.reason ? h("pre", { class: "error" }, shown.reason) : "", ...shown.waiting.map((text) => h("p", { class: "soft" }, text)));
    for (const step of shown.steps) {
      let entry = known.get(step.id);
      if (!entry) {
        entry = { log: h("div", { class: "log", tabindex: "0", role: "document", "aria-label": `Output of ${step.name}` }), head: h("button", { "aria-expanded": "false" }) };
        entry.box = h("div", { hidden: true }, entry.log, h("div", { class: "logbar" }, h("button", { class: "plain", onclick: () => download(step.id, step.name) }, "Download"), h("span", { class: "mono" }, step.id)));
        entry.head.addEventListener("click", () => { entry.chosen = true; open(entry, step); });
        entry.node = h("div", { class: "step" }, entry.head, entry.box);
        known.set(step.id, entry);
        steps.append(entry.node);
      }
      entry.head.replaceChildren(badge(step.status), h("span", {}, shown.parallelism > 1 ? `[${step.index}] ` : "", step.name), h("span", { class: "soft" }, step.exitCode ? `exit ${step.exitCode} · ` : "", took(step.startedAt, step.endedAt)));
      // What runs or failed is open, unless somebody chose otherwise.
      if (!entry.chosen && entry.box.hidden && (step.status === "running" || step.status === "failed")) open(entry, step);
    }
    if (!shown.steps.length && !steps.childElementCount) steps.append(h("div", { class: "row soft" }, "Nothing has run yet.")); else if (shown.steps.length) steps.querySelector(".row")?.remove();
  };
  let asked = false;
  const results = async () => {
    if (asked || !shown.stoppedAt) return;
    asked = true;
    const found = (await ask("query($id: ID!) { job(id: $id) { artifacts { index path size url } tests { total problems items { index name classname result runTime message } } } }", { id }, signal)).job;
    if (found) kept.replaceChildren(...artifactList(found.artifacts), ...testList(found.tests));
  };
  draw();
  results();
  let reading = false, again = false;
  follow("subscription($id: ID!) { pipeline(id: $id) { id } }", { id: workflow.pipelineId }, signal, async () => {
    if (reading) { again = true; return; }
    reading = true;
    do { again = false; try { const next = await read(); if (next) { shown = next; draw(); results(); } } catch (error) { break; } } while (again);
    reading = false;
  });
  ticking(signal, () => { if (!shown.stoppedAt && !head.querySelector("button:active")) draw(); });
}
function artifactList(artifacts) {
  if (!artifacts.length) return [];
  const rows = artifacts.map((artifact) => h("div", { class: "row" }, h("button", { class: "plain", onclick: () => save(artifact.url) }, artifact.path), h("span", { class: "soft" }, `${artifact.size.toLocaleString()} bytes${artifact.index ? ` · node ${artifact.index}` : ""}`)));
  return [h("h2", {}, "Artifacts"), h("div", { class: "list" }, ...rows)];
}
function testList(tests) {
  if (!tests.total && !tests.problems.length) return [];
  const bad = (test) => test.result === "failure" || test.result === "error";
  const rows = [...tests.items].sort((a, b) => bad(b) - bad(a)).map((test) => h("div", { class: "row" }, badge(bad(test) ? "failed" : test.result), h("span", {}, [test.classname, test.name].filter(Boolean).join(" · ")), h("span", { class: "soft" }, `${test.runTime.toFixed(2)} s`), bad(test) && test.message ? h("pre", { class: "error" }, test.message) : ""));
  return [h("h2", {}, `Tests (${tests.total})`), ...tests.problems.map((text) => h("p", { class: "error" }, text)), h("div", { class: "list" }, ...rows)];
}
// A link cannot send the token along: it is asked for the address, which needs none for a while.
async function save(url) {
  const response = await call(`${new URL(url).pathname}?format=json`);
  h("a", { href: (await response.json()).url }).click();
}
async function download(step, name) {
  const response = await call(`/logs/${step}/raw`);
  const url = URL.createObjectURL(await response.blob());
  h("a", { href: url, download: `${name.replace(/[^\w.-]+/g, "-").slice(0, 60)}.log` }).click();
  setTimeout(() => URL.revokeObjectURL(url), 10000);
}
function missing(text) { show("Not found", [], h("h1", {}, text), h("p", {}, link("/", {}, "All pipelines"))); }

async function byId(kind, id, signal) {
  const query = kind === "pipelines" ? "query($id: ID!) { it: pipeline(id: $id) { projectSlug number } }" : "query($id: ID!) { it: workflow(id: $id) { projectSlug number: pipelineNumber } }";
  const { it } = await ask(query, { id }, signal);
  if (!it) return missing("Not found.");
  history.replaceState(null, "", `/projects/${it.projectSlug}/pipelines/${it.number}`);
  return pipeline(it.projectSlug, it.number, signal);
}
async function route() {
  leave.abort();
  leave = new AbortController();
  const { signal } = leave;
  if (location.pathname === "/setup") return redeem(new URLSearchParams(location.search).get("code") || "");
  if (!sessionStorage.getItem(TOKEN)) return signIn();
  $("live").textContent = "";
  $("user").replaceChildren(h("button", { class: "plain", onclick: () => { sessionStorage.removeItem(TOKEN); route(); } }, "Sign out"));
  const path = decodeURIComponent(location.pathname);
  try {
    let match;
    if ((match = /^\/projects\/([^/]+\/[^/]+\/[^/]+)\/pipelines\/(\d+)/.exec(path))) await pipeline(match[1], match[2], signal);
    else if ((match = /^\/projects\/([^/]+\/[^/]+\/[^/]+)\/?$/.exec(path))) await project(match[1], signal);
    else if ((match = /^\/jobs\/([0-9a-f-]+)/.exec(path))) await job(match[1], signal);
    else if ((match = /^\/(pipelines|workflows)\/([0-9a-f-]+)/.exec(path))) await byId(match[1], match[2], signal);
    else if (path === "/") await home(signal);
    else missing("There is no such page.");
  } catch (error) { if (!signal.aborted && error.name !== "AbortError") show("Error", [], h("h1", {}, "This cannot be shown now"), h("pre", { class: "error" }, error.message), h("p", {}, h("button", { onclick: route }, "Try again"))); }
}
function go(path) { history.pushState(null, "", path); route(); window.scrollTo(0, 0); $("main").focus(); }
document.addEventListener("click", (event) => {
  const a = event.target.closest && event.target.closest("a[data-link]");
  if (!a || event.defaultPrevented || event.ctrlKey || event.metaKey || event.shiftKey || event.button) return;
  event.preventDefault();
  go(a.getAttribute("href"));
});
window.addEventListener("popstate", route);
route();
