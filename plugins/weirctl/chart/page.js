"use strict";
// The script runs before its data is parsed, so it waits for the end of the document. All texts are set as textContent.
document.addEventListener("DOMContentLoaded", () => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const MOST_CELLS = 70, MOST_ROWS = 400, MOST_POLICIES = 60;
  const $ = (id) => document.getElementById(id);
  const el = (tag, props = {}, ...children) => {
    const e = Object.assign(document.createElement(tag), props);
    e.append(...children);
    return e;
  };
  const SVG = "http://www.w3.org/2000/svg";
  const svg = (tag, attributes = {}, ...children) => {
    const e = document.createElementNS(SVG, tag);
    for (const [k, v] of Object.entries(attributes)) e.setAttribute(k, v);
    e.append(...children);
    return e;
  };
  const title = (p) => p.pods && p.pods.length > 1 ? `${p.name} (${p.pods.length} pods)` : p.name;
  const count = (n, one, many) => `${n} ${n === 1 ? one : many}`;

  // Look-ups.
  data.parties.forEach((p, i) => {
    p.i = i;
    const labels = Object.entries(p.labels || {}).map(([k, v]) => `${k}=${v}`);
    p.text = [p.name, ...(p.pods || []).map((n) => `${p.namespace}/${n}`), ...labels,
      ...(p.addresses || []).flat(), ...(p.networks || []), ...(p.services || []).map((s) => s.service),
      p.kind === "world" ? "world" : ""].join(" ").toLowerCase();
  });
  const between = new Map(); // "from,to": its rows
  let expanded = 0;
  data.rows.forEach((r) => { expanded += r.f.length * r.t.length; });
  const lookup = (i, j) => {
    if (expanded < 2e6) return between.get(i * data.parties.length + j) || [];
    return data.rows.filter((r) => r.f.includes(i) && r.t.includes(j));
  };
  if (expanded < 2e6) {
    for (const r of data.rows) for (const i of r.f) for (const j of r.t) {
      const k = i * data.parties.length + j;
      if (between.has(k)) between.get(k).push(r); else between.set(k, [r]);
    }
  }
  const isSelf = (i, j) => i === j && data.parties[i].pods && data.parties[i].pods.length === 1;
  const isWorld = (i) => data.parties[i].kind === "world";

  // Filters.
  const port = () => {
    const text = $("port").value.trim();
    $("port").classList.remove("wrong");
    if (text === "") return null;
    const m = /^(\d+)(?:-(\d+))?(?:\/(tcp|udp|sctp))?$/i.exec(text);
    if (!m) { $("port").classList.add("wrong"); return null; }
    return { first: +m[1], last: +(m[2] || m[1]), proto: (m[3] || "tcp").toLowerCase() };
  };
  const opens = (set, p) => !p || (data.ports[set][p.proto] || []).some((r) => r.first <= p.last && p.first <= r.last);
  const covers = (set, p) => (data.ports[set][p.proto] || []).some((r) => r.first <= p.first && p.last <= r.last);
  const words = (r, p) => {
    const family = r.v ? ` (${r.v})` : "";
    if (!p) return data.ports[r.p].words + family;
    const cut = (data.ports[r.p][p.proto] || []).map((x) => [Math.max(x.first, p.first), Math.min(x.last, p.last)])
      .filter(([a, b]) => a <= b).map(([a, b]) => a === b ? a : `${a}-${b}`);
    return `${p.proto.toUpperCase()} ${cut.join(", ")}${family}`;
  };
  const state = () => {
    const text = (id) => $(id).value.trim().toLowerCase();
    const matches = (p, t) => t === "" || p.text.includes(t);
    const ns = $("namespace").value, from = text("from"), to = text("to"), world = $("world").checked;
    const visible = (p) => world || p.kind !== "world";
    const inNamespace = (p) => ns === "" || p.namespace === ns;
    return {
      ns, port: port(),
      from: data.parties.filter((p) => visible(p) && matches(p, from)),
      to: data.parties.filter((p) => visible(p) && matches(p, to)),
      keep: (i, j) => ns === "" || inNamespace(data.parties[i]) || inNamespace(data.parties[j]),
      own: (p) => inNamespace(p) || p.kind === "world",
      policy: (name) => ns === "" || name.startsWith(ns + "/"),
    };
  };

  // Details.
  const detail = (...nodes) => $("detail").replaceChildren(...nodes);
  const list = (texts) => el("ul", {}, ...texts.map((t) => el("li", { textContent: t })));
  const partyNodes = (p) => {
    const nodes = [el("h2", { textContent: title(p), className: p.kind })];
    const add = (name, texts) => {
      if (texts && texts.length) nodes.push(el("h3", { textContent: name }), list(texts));
    };
    add("Labels", Object.entries(p.labels || {}).map(([k, v]) => `${k}=${v}`));
    add("Isolated in ingress by", p.ingress);
    add("Isolated in egress by", p.egress);
    add("Services", (p.services || []).map((s) => s.port
      ? `${s.service}:${s.port} → ${s.protocol.toUpperCase()} ${s.targets.join(", ")}` : `${s.service} → every port`));
    const pods = (p.pods || []).map((n, i) => `${n} ${(p.addresses[i] || []).join(", ")}`);
    add("Pods", pods.length > 50 ? [...pods.slice(0, 50), `and ${pods.length - 50} more`] : pods);
    add("Networks", p.networks);
    if (p.off) nodes.push(el("p", { className: "note", textContent: "Enforcement is off for these pods." }));
    if (p.unknown) nodes.push(el("p", { className: "note", textContent: "The pod is unknown, so all is dropped." }));
    return nodes;
  };
  const why = (i, j) => {
    const from = data.parties[i], to = data.parties[j], nodes = [];
    const side = (name, party, policies, peer, direction) => {
      nodes.push(el("h3", { textContent: name }));
      if (party.kind === "world") return nodes.push(list(["not a pod: no policy applies"]));
      if (!policies || !policies.length) return nodes.push(list(["no policy isolates it: all is allowed"]));
      const rules = data.rules.filter((r) => policies.includes(r.policy) && r.field.startsWith(direction) &&
        (r.peers || []).includes(peer.i) && r.subjects.includes(party.i));
      nodes.push(list(policies.map((p) => `isolated by ${p}`)));
      nodes.push(list(rules.length ? rules.map((r) => `${r.policy} ${r.field} allows ${r.words}`) : ["no rule means the peer"]));
    };
    side(`Egress of ${from.name}`, from, from.egress, to, "egress");
    side(`Ingress of ${to.name}`, to, to.ingress, from, "ingress");
    return nodes;
  };
  const showPair = (i, j, p) => {
    const rows = lookup(i, j).filter((r) => opens(r.p, p));
    detail(el("h2", { textContent: `${title(data.parties[i])} → ${title(data.parties[j])}` }),
      list(rows.length ? rows.map((r) => words(r, p)) : ["nothing is allowed"]), ...why(i, j));
  };

  // The views.
  const note = (text) => el("p", { className: "note", textContent: text });
  const matrix = (s) => {
    let from = s.from, to = s.to;
    if (s.ns !== "") { // the namespace's own, and those with which it has connections
      const peers = new Set();
      for (const r of data.rows) {
        if (!opens(r.p, s.port)) continue;
        if (r.f.some((i) => data.parties[i].namespace === s.ns)) r.t.forEach((j) => peers.add(j));
        if (r.t.some((j) => data.parties[j].namespace === s.ns)) r.f.forEach((i) => peers.add(i));
      }
      const own = (p) => p.namespace === s.ns;
      const rank = (p) => own(p) ? 0 : p.kind === "world" ? 1 : 2;
      const order = (a, b) => rank(a) - rank(b) || a.i - b.i;
      from = from.filter((p) => own(p) || peers.has(p.i)).sort(order);
      to = to.filter((p) => own(p) || peers.has(p.i)).sort(order);
    }
    const nodes = [];
    if (from.length > MOST_CELLS || to.length > MOST_CELLS) {
      nodes.push(note(`${from.length} × ${to.length} groups: the first ${MOST_CELLS} of each are shown. ` +
        "Choose a namespace, or search From and To."));
    }
    from = from.slice(0, MOST_CELLS); to = to.slice(0, MOST_CELLS);
    nodes.push(el("p", { className: "key" },
      ...[["var(--all)", s.port ? "all of these ports" : "everything"],
        ["var(--some)", s.port ? "some of these ports" : "some ports"], ["var(--none)", "nothing"]].map(([c, t]) => {
        const i = el("i");
        i.style.background = c;
        return el("span", {}, i, t);
      })));
    const head = el("tr", {}, el("th", { textContent: "from ↓  to →" }), ...to.map((p) =>
      el("th", { className: p.kind, title: title(p), onclick: () => detail(...partyNodes(p)) },
        el("span", { textContent: title(p) }))));
    const body = from.map((f) => el("tr", {},
      el("th", { className: f.kind, title: title(f), textContent: title(f), onclick: () => detail(...partyNodes(f)) }),
      ...to.map((t) => {
        const cell = el("td");
        if (isSelf(f.i, t.i) || isWorld(f.i) && isWorld(t.i) || !s.keep(f.i, t.i)) {
          cell.className = "self";
          return cell;
        }
        const rows = lookup(f.i, t.i).filter((r) => opens(r.p, s.port));
        const all = rows.some((r) => !r.v && (s.port ? covers(r.p, s.port) : data.ports[r.p].words === "everything"));
        if (rows.length) cell.className = all ? "all" : "some";
        const said = rows.length ? rows.map((r) => words(r, s.port)).join("; ") : "nothing";
        cell.title = `${title(f)} → ${title(t)}: ${said}`;
        cell.tabIndex = 0;
        cell.setAttribute("aria-label", cell.title);
        cell.onclick = () => {
          document.querySelectorAll(".chosen").forEach((c) => c.classList.remove("chosen"));
          cell.classList.add("chosen");
          showPair(f.i, t.i, s.port);
        };
        cell.onkeydown = (e) => { if (e.key === "Enter") cell.onclick(); };
        return cell;
      })));
    nodes.push(el("table", { className: "grid" }, el("thead", {}, head), el("tbody", {}, ...body)));
    return nodes;
  };

  // names returns the parties in few words.
  const names = (parties) => {
    const by = new Map();
    for (const p of parties) {
      const key = p.namespace || "";
      if (by.has(key)) by.get(key).push(p); else by.set(key, [p]);
    }
    const out = [];
    for (const [ns, list] of by) {
      const whole = data.parties.filter((p) => (p.namespace || "") === ns);
      if (ns === "" && list.length === whole.length) out.push("the world");
      else if (ns !== "" && list.length > 1 && list.length === whole.length) out.push(`all pods in ${ns}`);
      else out.push(...list.map(title));
    }
    return out.length > 8 ? `${out.slice(0, 8).join(", ")}, and ${out.length - 8} more` : out.join(", ");
  };
  const connections = (s) => {
    const from = new Set(s.from.map((p) => p.i)), to = new Set(s.to.map((p) => p.i)), rows = [];
    for (const r of data.rows) {
      if (!opens(r.p, s.port)) continue;
      const inNs = (i) => s.ns === "" || data.parties[i].namespace === s.ns;
      const f = r.f.filter((i) => from.has(i)), t = r.t.filter((j) => to.has(j));
      const parts = [[f.filter(inNs), t], [f.filter((i) => !inNs(i)), t.filter(inNs)]];
      for (const [a, b] of parts) {
        if (a.length && b.length) rows.push({ r, f: a.map((i) => data.parties[i]), t: b.map((j) => data.parties[j]) });
      }
    }
    const nodes = [];
    if (rows.length > MOST_ROWS) nodes.push(note(`${rows.length} rows: the first ${MOST_ROWS} are shown. Use the filters.`));
    const head = el("tr", {}, ...["From", "To", "Ports"].map((t) => el("th", { textContent: t })));
    const body = rows.slice(0, MOST_ROWS).map((x) => el("tr", {
      onclick: () => {
        if (x.f.length === 1 && x.t.length === 1) return showPair(x.f[0].i, x.t[0].i, s.port);
        const some = (l) => list(l.slice(0, 100).map(title).concat(l.length > 100 ? [`and ${l.length - 100} more`] : []));
        detail(el("h2", { textContent: words(x.r, s.port) }), el("h3", { textContent: "From" }), some(x.f),
          el("h3", { textContent: "To" }), some(x.t));
      },
    }, ...[names(x.f), names(x.t), words(x.r, s.port)].map((t) => el("td", { textContent: t }))));
    nodes.push(rows.length ? el("table", { className: "list" }, el("thead", {}, head), el("tbody", {}, ...body))
      : el("p", { textContent: "No connection matches the filters." }));
    return nodes;
  };

  const graph = (s) => {
    const from = new Set(s.from.map((p) => p.i)), to = new Set(s.to.map((p) => p.i));
    let rules = data.rules.filter((r) => s.policy(r.policy)).map((r) => {
      const egress = r.field.startsWith("egress");
      const subjects = r.subjects.filter((i) => (egress ? from : to).has(i));
      const peers = (r.peers || []).filter((i) => (egress ? to : from).has(i));
      return { ...r, left: egress ? subjects : peers, right: egress ? peers : subjects, subjects, egress };
    }).filter((r) => r.subjects.length);
    const policies = [...new Set(rules.map((r) => r.policy))];
    const nodes = [];
    if (policies.length === 0) return [el("p", { textContent: "No policy isolates pods that match the filters." })];
    if (policies.length > MOST_POLICIES) {
      nodes.push(note(`${policies.length} policies: the first ${MOST_POLICIES} are shown. Choose a namespace.`));
      const shown = new Set(policies.slice(0, MOST_POLICIES));
      rules = rules.filter((r) => shown.has(r.policy));
    }
    const few = (parties) => { // the boxes for a set of parties
      const by = new Map();
      for (const i of parties) {
        const p = data.parties[i], key = p.namespace || "";
        if (by.has(key)) by.get(key).push(p); else by.set(key, [p]);
      }
      const out = [];
      for (const [ns, list] of by) {
        const whole = data.parties.filter((p) => (p.namespace || "") === ns).length;
        if (ns === "" && list.length === whole) out.push({ key: "the world", world: true, parties: list });
        else if (list.length > 1 && list.length === whole) out.push({ key: `all pods in ${ns}`, parties: list });
        else out.push(...list.map((p) => ({ key: title(p), world: p.kind === "world", parties: [p] })));
      }
      return out;
    };
    const columns = [new Map(), new Map(), new Map()], edges = [];
    const put = (c, key, props) => {
      if (!columns[c].has(key)) columns[c].set(key, { key, y: columns[c].size, c, ...props });
      return columns[c].get(key);
    };
    for (const r of rules) {
      const middle = put(1, `${r.policy} ${r.field}`, {
        rule: r, label: `${r.policy} ${r.field}`, sub: (r.peers || []).length ? r.words : "allows nothing", policy: true,
        deny: !(r.peers || []).length,
      });
      for (const b of few(r.left)) edges.push([put(0, b.key, b), middle]);
      for (const b of few(r.right)) edges.push([middle, put(2, b.key, b)]);
    }
    const W = 260, X = [10, 380, 750], H = [30, 46, 30], G = 10;
    const tallest = Math.max(...columns.map((m, c) => m.size * (H[c] + G)));
    const place = (nodes, c, wish) => { // near their wishes, in their order, without overlaps
      let free = 0;
      nodes.sort((a, b) => wish(a) - wish(b));
      for (const n of nodes) { n.top = Math.max(wish(n) - H[c] / 2, free); free = n.top + H[c] + G; }
      free = tallest;
      for (const n of nodes.reverse()) { n.top = Math.min(n.top, free - H[c] - G); free = n.top; }
    };
    const middles = [...columns[1].values()], gaps = (tallest - middles.length * (H[1] + G)) / 2;
    place(middles, 1, (n) => gaps + n.y * (H[1] + G) + H[1] / 2);
    for (const c of [0, 2]) {
      const sums = new Map();
      for (const [a, b] of edges) {
        const [n, m] = c === 0 ? [a, b] : [b, a];
        if (n.c !== c) continue;
        const s = sums.get(n) || [0, 0];
        sums.set(n, [s[0] + m.top + H[1] / 2, s[1] + 1]);
      }
      place([...columns[c].values()], c, (n) => sums.has(n) ? sums.get(n)[0] / sums.get(n)[1] : 0);
    }
    const top = (n) => 36 + n.top;
    const root = svg("svg", { class: "graph", width: 1020, height: tallest + 50, role: "img", "aria-label": "Graph of the policies" });
    ["From", "Rule", "To"].forEach((t, c) => {
      const head = svg("text", { x: X[c], y: 20, "font-weight": 600 });
      head.textContent = t;
      root.append(head);
    });
    const paths = edges.map(([a, b]) => {
      const x1 = X[a.c] + W, y1 = top(a) + H[a.c] / 2, x2 = X[b.c], y2 = top(b) + H[b.c] / 2, m = (x1 + x2) / 2;
      const path = svg("path", { d: `M${x1},${y1} C${m},${y1} ${m},${y2} ${x2},${y2}` });
      root.append(path);
      return { a, b, path };
    });
    const cut = (t) => t.length > 36 ? `${t.slice(0, 35)}…` : t;
    for (const column of columns) for (const n of column.values()) {
      const g = svg("g", { class: n.policy ? (n.deny ? "policy deny" : "policy") : n.world ? "world" : "pods", tabindex: 0 });
      const label = svg("text", { x: X[n.c] + 8, y: top(n) + 19 });
      label.textContent = cut(n.label || n.key);
      const tip = svg("title");
      tip.textContent = n.sub ? `${n.label}: ${n.sub}` : n.key;
      g.append(tip, svg("rect", { x: X[n.c], y: top(n), width: W, height: H[n.c] }), label);
      if (n.sub) {
        const sub = svg("text", { x: X[n.c] + 8, y: top(n) + 36, opacity: .75 });
        sub.textContent = cut(n.sub);
        g.append(sub);
      }
      n.g = g;
      g.addEventListener("click", () => {
        const lit = new Set([n]);
        for (let again = true; again;) { // towards both sides, not back
          again = false;
          for (const { a, b } of paths) {
            if (lit.has(a) && a.c >= n.c && !lit.has(b)) { lit.add(b); again = true; }
            if (lit.has(b) && b.c <= n.c && !lit.has(a)) { lit.add(a); again = true; }
          }
        }
        for (const c of columns) for (const o of c.values()) o.g.classList.toggle("dim", !lit.has(o));
        for (const { a, b, path } of paths) path.setAttribute("class", lit.has(a) && lit.has(b) ? "lit" : "dim");
        if (n.rule) {
          detail(el("h2", { textContent: n.rule.policy }), list([n.rule.field, n.sub]),
            el("h3", { textContent: "isolates" }), list(n.rule.subjects.map((i) => title(data.parties[i])).slice(0, 100)),
            el("h3", { textContent: n.rule.egress ? "allows to" : "allows from" }),
            list((n.rule.peers || []).map((i) => title(data.parties[i])).slice(0, 100)));
        } else if (n.parties.length === 1) detail(...partyNodes(n.parties[0]));
        else detail(el("h2", { textContent: n.key }), list(n.parties.map(title).slice(0, 100)));
      });
      root.append(g);
    }
    nodes.push(root);
    return nodes;
  };

  // Wiring.
  const views = { matrix, list: connections, graph };
  let view = "matrix";
  const draw = () => {
    const nodes = views[view](state());
    $("view").replaceChildren(...nodes);
    document.querySelectorAll("nav button").forEach((b) => b.setAttribute("aria-pressed", b.dataset.view === view));
  };
  const pods = data.parties.reduce((n, p) => n + (p.pods || []).length, 0);
  const groups = data.parties.filter((p) => p.kind === "pods").length;
  $("title").textContent = data.title;
  $("summary").textContent = `${count(pods, "pod", "pods")} in ${count(groups, "group", "groups")}, the world in ` +
    `${count(data.parties.length - groups, "region", "regions")}, ${count((data.policies || []).length, "policy", "policies")}`;
  for (const n of data.notes || []) $("summary").append(el("br"), el("span", { className: "note", textContent: n }));
  for (const ns of [...new Set(data.parties.map((p) => p.namespace).filter(Boolean))]) {
    $("namespace").append(el("option", { textContent: ns, value: ns }));
  }
  document.querySelectorAll("nav button").forEach((b) => { b.onclick = () => { view = b.dataset.view; draw(); }; });
  $("filters").addEventListener("input", draw);
  $("filters").addEventListener("reset", () => setTimeout(draw));
  $("filters").addEventListener("submit", (e) => e.preventDefault());
  $("theme").onclick = () => {
    const root = document.documentElement.classList;
    const dark = root.contains("dark") || !root.contains("light") && matchMedia("(prefers-color-scheme: dark)").matches;
    root.toggle("dark", !dark);
    root.toggle("light", dark);
  };
  const wanted = new URLSearchParams(location.hash.slice(1)); // page.html#view=graph&namespace=shop
  for (const id of ["namespace", "from", "to", "port"]) if (wanted.get(id)) $(id).value = wanted.get(id);
  if (views[wanted.get("view")]) view = wanted.get("view");
  if (wanted.get("theme") === "dark") document.documentElement.classList.add("dark");
  draw();
  const pair = (wanted.get("pair") || "").split(">").map((name) => data.parties.find((p) => p.name === name));
  if (pair.length === 2 && pair[0] && pair[1]) showPair(pair[0].i, pair[1].i, state().port); // …#pair=shop/web>shop/db
});
